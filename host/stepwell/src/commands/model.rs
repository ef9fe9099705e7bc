use reqwest::Method;
use serde_json::Value;

use crate::cli::ModelCommand;
use crate::client::{Client, Failure};
use crate::output;

/// Runs `stepwell model …`.
pub(crate) async fn run(client: &Client, command: ModelCommand, json: bool) -> Result<(), Failure> {
    match command {
        ModelCommand::List => {
            let reply = client
                .json(client.request(Method::GET, "/api/v1/models"))
                .await?;
            if json {
                output::json(&reply);
                return Ok(());
            }
            let mut rows = Vec::new();
            for model in reply
                .get("items")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                for version in model
                    .get("versions")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    rows.push(vec![
                        output::cell(model, "name"),
                        output::cell(version, "version"),
                        output::cell(version, "state"),
                        output::cell(version, "reason"),
                    ]);
                }
            }
            output::table(
                &["name", "version", "state", "reason"],
                rows,
                "no models: put one in the models directory as NAME/VERSION/saved_model.pb",
            );
        }
        ModelCommand::Show { name } => {
            let reply = client
                .json(client.request(Method::GET, &format!("/api/v1/models/{name}")))
                .await?;
            output::json(&reply);
        }
    }
    Ok(())
}
