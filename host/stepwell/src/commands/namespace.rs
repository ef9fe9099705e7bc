use reqwest::Method;
use serde_json::{Map, Value};
use stepwell_core::ByteSize;

use crate::cli::{NamespaceCommand, SetNamespaceArgs};
use crate::client::{Client, Failure};
use crate::output;

/// The quotas as the API names them.
const QUOTAS: [&str; 6] = [
    "plugins",
    "bytes",
    "pipelines",
    "runs_per_second",
    "concurrent_runs",
    "cpu_seconds_per_minute",
];

/// Runs `stepwell namespace …`.
pub(crate) async fn run(
    client: &Client,
    command: NamespaceCommand,
    json: bool,
) -> Result<(), Failure> {
    match command {
        NamespaceCommand::List => list(client, json).await,
        NamespaceCommand::Show { name } => {
            let reply = client
                .json(client.request(Method::GET, &path(&name)))
                .await?;
            show(&reply, json);
            Ok(())
        }
        NamespaceCommand::Set(args) => set(client, args, json).await,
        NamespaceCommand::Rm { name } => {
            let reply = client
                .json(client.request(Method::DELETE, &path(&name)))
                .await?;
            if json {
                output::json(&reply);
            } else {
                output::line(format!("removed namespace {name}"));
            }
            Ok(())
        }
    }
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let namespaces = client
        .every(|| client.request(Method::GET, "/api/v1/namespaces"))
        .await?;
    if json {
        output::json(&serde_json::json!({"items": namespaces, "next_cursor": null}));
        return Ok(());
    }
    let rows = namespaces.iter().map(|namespace| {
        let usage = namespace.get("usage").unwrap_or(&Value::Null);
        vec![
            output::cell(namespace, "name"),
            output::cell(usage, "plugins"),
            bytes(usage),
            output::cell(usage, "pipelines"),
            output::cell(usage, "tokens"),
        ]
    });
    output::table(
        &["name", "plugins", "size", "pipelines", "tokens"],
        rows.collect(),
        "no namespaces",
    );
    Ok(())
}

fn show(namespace: &Value, json: bool) {
    if json {
        output::json(namespace);
        return;
    }
    let part = |key: &str| namespace.get(key).cloned().unwrap_or_default();
    let (quotas, usage) = (part("quotas"), part("usage"));
    output::line(format!("{:<24}{}", "name", output::cell(namespace, "name")));
    output::line(format!(
        "{:<24}{}",
        "created_at",
        output::cell(namespace, "created_at")
    ));
    for key in QUOTAS {
        let size = |of: &Value| match key {
            "bytes" => bytes(of),
            _ => output::cell(of, key),
        };
        let quota = match quotas.get(key) {
            Some(_) => size(&quotas),
            None => "no quota".to_owned(),
        };
        let used = match usage.get(key) {
            Some(_) => format!(", {} used", size(&usage)),
            None => String::new(),
        };
        output::line(format!("{key:<24}{quota}{used}"));
    }
}

async fn set(client: &Client, args: SetNamespaceArgs, json: bool) -> Result<(), Failure> {
    let given = [
        args.plugins,
        args.bytes,
        args.pipelines,
        args.runs_per_second,
        args.concurrent_runs,
        args.cpu_seconds_per_minute,
    ];
    let path = path(&args.name);
    // What is not named stays as it is.
    let mut quotas = match client.json(client.request(Method::GET, &path)).await {
        Ok(namespace) => namespace
            .get("quotas")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default(),
        Err(Failure::Refused(problem))
            if problem.get("code").and_then(Value::as_str) == Some("not-found") =>
        {
            Map::new()
        }
        Err(failure) => return Err(failure),
    };
    for (key, text) in QUOTAS.into_iter().zip(given) {
        match text.as_deref() {
            None => {}
            Some("none") => {
                quotas.remove(key);
            }
            Some(text) => {
                quotas.insert(key.to_owned(), value(key, text)?);
            }
        }
    }
    let body = serde_json::json!({"quotas": quotas});
    let reply = client
        .json(client.request(Method::PUT, &path).json(&body))
        .await?;
    show(&reply, json);
    Ok(())
}

fn value(key: &str, text: &str) -> Result<Value, Failure> {
    let number: Option<Value> = match key {
        // The host reads sizes, and says what is wrong with one.
        "bytes" => text
            .parse::<u64>()
            .map_or_else(|_| Some(text.into()), |bytes| Some(bytes.into())),
        "cpu_seconds_per_minute" => text.parse::<f64>().ok().map(Into::into),
        _ => text.parse::<u64>().ok().map(Into::into),
    };
    number.filter(|value| !value.is_null()).ok_or_else(|| {
        let flag = key.replace('_', "-");
        Failure::Usage(format!("--{flag} '{text}' is neither a number nor none"))
    })
}

fn bytes(of: &Value) -> String {
    let bytes = of.get("bytes").and_then(Value::as_u64);
    bytes.map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string())
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/{name}")
}
