use reqwest::Method;
use serde_json::{Map, Value};

use crate::cli::{CreateTokenArgs, TokenCommand};
use crate::client::{Client, Failure};
use crate::output;

const PATH: &str = "/api/v1/tokens";

/// Runs `stepwell token …`.
pub(crate) async fn run(client: &Client, command: TokenCommand, json: bool) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(args) => create(client, args, json).await,
        TokenCommand::List => list(client, json).await,
        TokenCommand::Revoke { id } => {
            let reply = client
                .json(client.request(Method::DELETE, &format!("{PATH}/{id}")))
                .await?;
            if json {
                output::json(&reply);
            } else {
                output::line(format!("revoked token {id}"));
            }
            Ok(())
        }
    }
}

async fn create(client: &Client, args: CreateTokenArgs, json: bool) -> Result<(), Failure> {
    let namespace = match (args.all_namespaces, client.namespace()) {
        (true, Some(namespace)) => {
            return Err(Failure::Usage(format!(
                "--all-namespaces and namespace {namespace} exclude each other"
            )));
        }
        (true, None) => None,
        // The host says that operators are not confined to a namespace.
        (false, Some(namespace)) => Some(namespace),
        (false, None) if args.role == "operator" => None,
        (false, None) => Some("default"),
    };
    let mut body = Map::new();
    let members = [
        ("role", Some(args.role.as_str())),
        ("namespace", namespace),
        ("expires", args.expires.as_deref()),
        ("name", args.name.as_deref()),
    ];
    for (key, value) in members {
        body.extend(value.map(|value| (key.to_owned(), Value::from(value))));
    }
    let reply = client
        .json(client.request(Method::POST, PATH).json(&body))
        .await?;
    if json {
        output::json(&reply);
        return Ok(());
    }
    let cell = |key: &str| output::cell(&reply, key);
    // The token alone on stdout, so that scripts can take it from there.
    eprintln!(
        "token {}: {} of {}, {}; it cannot be shown again",
        cell("id"),
        cell("role"),
        place(&reply),
        match reply.get("expires_at").and_then(Value::as_str) {
            Some(end) => format!("until {end}"),
            None => "until it is revoked".to_owned(),
        }
    );
    output::line(cell("token"));
    Ok(())
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let tokens = client.every(|| client.request(Method::GET, PATH)).await?;
    if json {
        output::json(&serde_json::json!({"items": tokens, "next_cursor": null}));
        return Ok(());
    }
    let rows = tokens.iter().map(|token| {
        let cell = |key: &str| output::cell(token, key);
        vec![
            cell("id"),
            cell("name"),
            cell("role"),
            place(token),
            cell("expires_at"),
            cell("last_used_at"),
        ]
    });
    output::table(
        &["id", "name", "role", "namespace", "expires", "last used"],
        rows.collect(),
        "no tokens: make one with 'stepwell token create --role ROLE'",
    );
    Ok(())
}

fn place(token: &Value) -> String {
    let namespace = token.get("namespace").and_then(Value::as_str);
    namespace.unwrap_or("all namespaces").to_owned()
}
