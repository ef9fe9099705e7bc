use std::io::IsTerminal as _;
use std::path::Path;

use reqwest::Method;
use serde_json::Value;

use crate::cli::InvokeArgs;
use crate::client::{Client, Failure, sendable};
use crate::{input, output};

/// Runs `stepwell invoke …`.
pub(crate) async fn run(client: &Client, args: InvokeArgs, json: bool) -> Result<(), Failure> {
    let (data, guessed) = data(args.data.as_deref()).await?;
    for (option, value) in [
        ("--content-type", &args.content_type),
        ("--type", &args.event_type),
        ("--subject", &args.subject),
    ] {
        sendable(option, value.as_deref())?;
    }
    let content_type = args.content_type.or(guessed);
    let mut request = client.scoped(Method::POST, &format!("pipelines/{}/invoke", args.pipeline));
    if args.event_type.is_some() || args.subject.is_some() {
        // Attributes of one's own make it a CloudEvent, which then needs all of them.
        request = request
            .header("ce-specversion", "1.0")
            .header("ce-id", uuid::Uuid::now_v7().to_string())
            .header("ce-source", "/stepwell/cli")
            .header(
                "ce-type",
                args.event_type.as_deref().unwrap_or("cli.invoke"),
            );
    }
    if let Some(subject) = &args.subject {
        request = request.header("ce-subject", subject);
    }
    if let Some(content_type) = &content_type {
        request = request.header("content-type", content_type);
    }
    let response = client.send(request.body(data)).await?;
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let (run, content_type, status) = (
        header("stepwell-run-id"),
        header("content-type"),
        response.status(),
    );
    let body = response
        .bytes()
        .await
        .map_err(|error| client.transport(&error))?;
    if json {
        let data = serde_json::from_slice::<Value>(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        output::json(&serde_json::json!({
            "run_id": run, "status": status.as_u16(), "content_type": content_type, "data": data,
        }));
        return Ok(());
    }
    if body.is_empty() {
        if std::io::stderr().is_terminal() {
            eprintln!("no reply: the event was filtered");
        }
        return Ok(());
    }
    match serde_json::from_slice::<Value>(&body) {
        Ok(value) if std::io::stdout().is_terminal() => output::json(&value),
        _ => {
            output::bytes(&body);
            if !body.ends_with(b"\n")
                && (std::io::stdout().is_terminal() || std::str::from_utf8(&body).is_ok())
            {
                output::bytes(b"\n");
            }
        }
    }
    Ok(())
}

/// The data and the media type that its source suggests.
async fn data(argument: Option<&str>) -> Result<(Vec<u8>, Option<String>), Failure> {
    let (bytes, by_name) = match argument {
        None => (Vec::new(), None),
        Some("-") => {
            let bytes = input::read_all(std::io::stdin().lock(), input::MOST_BYTES);
            let failed = |error| Failure::Local(format!("cannot read standard input: {error}"));
            (bytes.map_err(failed)?, None)
        }
        Some(text) => match text.strip_prefix('@') {
            Some(path) => {
                let bytes = input::read(Path::new(path), input::MOST_BYTES)
                    .map_err(|error| Failure::Local(format!("cannot read {path}: {error}")))?;
                (bytes, by_extension(path))
            }
            None => (text.as_bytes().to_vec(), None),
        },
    };
    let looks_like_json = || serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
    let content_type = by_name
        .map(str::to_owned)
        .or_else(|| looks_like_json().then(|| "application/json".to_owned()));
    Ok((bytes, content_type))
}

fn by_extension(path: &str) -> Option<&'static str> {
    match path.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
        "json" => Some("application/json"),
        "png" => Some("image/png"),
        "jpg" | "jpeg" => Some("image/jpeg"),
        "pgm" => Some("image/x-portable-graymap"),
        "txt" => Some("text/plain"),
        "csv" => Some("text/csv"),
        _ => None,
    }
}
