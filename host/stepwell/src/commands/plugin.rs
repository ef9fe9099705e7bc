use reqwest::Method;
use serde_json::Value;
use stepwell_core::ByteSize;

use crate::cli::{PluginCommand, PushArgs};
use crate::client::{Client, Failure};
use crate::{input, output};

/// Runs `stepwell plugin …`.
pub(crate) async fn run(
    client: &Client,
    command: PluginCommand,
    json: bool,
) -> Result<(), Failure> {
    match command {
        PluginCommand::Push(args) => push(client, args, json).await,
        PluginCommand::List => list(client, json).await,
        PluginCommand::Show { plugin } => show(client, &plugin, json).await,
        PluginCommand::Rm { plugin } => remove(client, &plugin, json).await,
    }
}

async fn push(client: &Client, args: PushArgs, json: bool) -> Result<(), Failure> {
    let file = args.file.display().to_string();
    let bytes = input::read(&args.file, input::MOST_BYTES)
        .map_err(|error| Failure::Local(format!("cannot read {file}: {error}")))?;
    let (own_name, own_version) = own_name_and_version(&bytes);
    let missing = |what: &str| {
        Failure::Usage(format!(
            "{file} does not say its {what}: build it with 'stepwell build', or pass --{what}"
        ))
    };
    let name = args.name.or(own_name).ok_or_else(|| missing("name"))?;
    let version = args
        .version
        .or(own_version)
        .ok_or_else(|| missing("version"))?;
    let size = ByteSize(bytes.len() as u64);
    let progress = output::spinner(
        format!("uploading and compiling {name}@{version} ({size})"),
        json,
    );
    let request = client
        .scoped(Method::PUT, &format!("plugins/{name}/versions/{version}"))
        .header("content-type", "application/wasm")
        .body(bytes);
    let response = client.send(request).await;
    progress.finish_and_clear();
    let response = response?;
    let new = response.status() == reqwest::StatusCode::CREATED;
    let reply: Value = response
        .json()
        .await
        .map_err(|error| client.transport(&error))?;
    if json {
        output::json(&reply);
        return Ok(());
    }
    let cell = |key: &str| output::cell(&reply, key);
    if new {
        output::line(format!(
            "{name}@{version}  {}  {size}, compiled in {} ms",
            cell("world"),
            cell("compile_ms")
        ));
    } else {
        output::line(format!(
            "{name}@{version}  {}  was there already",
            cell("world")
        ));
    }
    output::line(format!("  {}", cell("digest")));
    Ok(())
}

/// What the component's metadata says; what is no component says nothing, and the host will say what it is.
fn own_name_and_version(bytes: &[u8]) -> (Option<String>, Option<String>) {
    let Ok(payload) = wasm_metadata::Payload::from_binary(bytes) else {
        return (None, None);
    };
    let metadata = payload.metadata();
    let version = metadata.version.as_ref().map(ToString::to_string);
    (metadata.name.clone(), version)
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let plugins = client.list("plugins").await?;
    if json {
        output::json(&serde_json::json!({"items": plugins, "next_cursor": null}));
        return Ok(());
    }
    let rows = plugins
        .iter()
        .map(|plugin| {
            let versions = plugin
                .get("versions")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            let shown: Vec<String> = versions
                .iter()
                .map(|version| {
                    version
                        .as_str()
                        .map_or_else(|| output::cell(version, "version"), str::to_owned)
                })
                .collect();
            vec![output::cell(plugin, "name"), shown.join(", ")]
        })
        .collect();
    output::table(
        &["name", "versions"],
        rows,
        "no plugins: upload one with 'stepwell plugin push FILE'",
    );
    Ok(())
}

async fn show(client: &Client, plugin: &str, json: bool) -> Result<(), Failure> {
    let path = match plugin.split_once('@') {
        Some((name, version)) => format!("plugins/{name}/versions/{version}"),
        None => format!("plugins/{plugin}"),
    };
    let reply = client.json(client.scoped(Method::GET, &path)).await?;
    if json {
        output::json(&reply);
        return Ok(());
    }
    if let Some(versions) = reply.get("versions").and_then(Value::as_array) {
        let rows = versions
            .iter()
            .map(|version| {
                ["version", "world", "size", "digest"]
                    .map(|key| output::cell(version, key))
                    .to_vec()
            })
            .collect();
        output::table(&["version", "world", "size", "digest"], rows, "no versions");
        return Ok(());
    }
    for key in [
        "name",
        "version",
        "world",
        "digest",
        "size",
        "compile_ms",
        "created_at",
    ] {
        output::line(format!("{key:<12}{}", output::cell(&reply, key)));
    }
    for key in ["imports", "exports"] {
        for (index, item) in reply
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .enumerate()
        {
            let heading = if index == 0 { key } else { "" };
            output::line(format!(
                "{heading:<12}{}",
                item.as_str().unwrap_or_default()
            ));
        }
    }
    Ok(())
}

async fn remove(client: &Client, plugin: &str, json: bool) -> Result<(), Failure> {
    let Some((name, version)) = plugin.split_once('@') else {
        return Err(Failure::Usage(format!(
            "'{plugin}' names no version: write {plugin}@VERSION"
        )));
    };
    let reply = client
        .json(client.scoped(
            Method::DELETE,
            &format!("plugins/{name}/versions/{version}"),
        ))
        .await?;
    if json {
        output::json(&reply);
    } else {
        output::line(format!("removed {plugin}"));
    }
    Ok(())
}
