use reqwest::Method;
use serde_json::Value;

use crate::cli::AuditArgs;
use crate::client::{Client, Failure};
use crate::output;

/// Runs `stepwell audit`.
pub(crate) async fn run(client: &Client, args: AuditArgs, json: bool) -> Result<(), Failure> {
    let mut query = vec![("limit", args.limit.to_string())];
    query.extend(args.since.map(|since| ("since", since)));
    query.extend(
        client
            .namespace()
            .map(|namespace| ("namespace", namespace.to_owned())),
    );
    let reply = client
        .json(client.request(Method::GET, "/api/v1/audit").query(&query))
        .await?;
    if json {
        output::json(&reply);
        return Ok(());
    }
    let records = reply.get("items").and_then(Value::as_array);
    let rows = records.into_iter().flatten().map(|record| {
        let cell = |key: &str| output::cell(record, key);
        let what = match (record.get("digest"), record.get("revision")) {
            (Some(_), _) => format!("{} {}", cell("subject"), cell("digest")),
            (_, Some(_)) => format!("{} revision {}", cell("subject"), cell("revision")),
            (None, None) => cell("subject"),
        };
        vec![
            cell("time"),
            format!("{} ({})", cell("who"), cell("name")),
            cell("namespace"),
            cell("action"),
            cell("outcome"),
            what,
        ]
    });
    output::table(
        &["time", "who", "namespace", "action", "outcome", "what"],
        rows.collect(),
        "no records",
    );
    Ok(())
}
