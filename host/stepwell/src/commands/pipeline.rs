mod together;

use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::Value;

use self::together::Member;
use crate::cli::PipelineCommand;
use crate::client::{Client, Failure};
use crate::{input, output};

/// Runs `stepwell pipeline …`.
pub(crate) async fn run(
    client: &Client,
    command: PipelineCommand,
    json: bool,
) -> Result<(), Failure> {
    match command {
        PipelineCommand::Apply { files, dry_run } => apply(client, &files, dry_run, json).await,
        PipelineCommand::List => list(client, json).await,
        PipelineCommand::Show { name, revision } => show(client, &name, revision, json).await,
        PipelineCommand::History { name } => history(client, &name, json).await,
        PipelineCommand::Rollback { name, revision } => {
            rollback(client, &name, revision, json).await
        }
        PipelineCommand::Rm { name } => remove(client, &name, json).await,
        PipelineCommand::Schema => {
            output::json(&stepwell_pipeline::json_schema());
            Ok(())
        }
    }
}

struct Document {
    path: PathBuf,
    name: String,
    text: String,
    content_type: &'static str,
}

/// Checks every document first, by itself and beside the others, then applies each; a mistake in one leaves all as they were.
async fn apply(
    client: &Client,
    files: &[PathBuf],
    dry_run: bool,
    json: bool,
) -> Result<(), Failure> {
    let mut documents = Vec::new();
    for path in expand(files)? {
        documents.push(read(path)?);
    }
    let members: Vec<_> = documents
        .iter()
        .map(|document| Member::read(&document.path, &document.text))
        .collect();
    let conflicts = together::conflicts(&members);
    if !conflicts.is_empty() {
        return Err(Failure::Refused(together::problem(&conflicts)));
    }
    let mut replies = Vec::new();
    let mut refused = Vec::new();
    for document in &documents {
        match client.json(request(client, document, true)).await {
            Ok(reply) => replies.push(reply),
            Err(Failure::Refused(problem)) => refused.push((document, problem)),
            Err(other) => return Err(other),
        }
    }
    if !refused.is_empty() {
        return Err(Failure::Refused(all_problems(&refused, documents.len())));
    }
    if !dry_run {
        replies.clear();
        for document in &documents {
            replies.push(client.json(request(client, document, false)).await?);
        }
    }
    if json {
        output::json(&match replies.as_slice() {
            [one] => one.clone(),
            _ => Value::Array(replies),
        });
        return Ok(());
    }
    for (document, reply) in documents.iter().zip(&replies) {
        let steps = reply
            .get("steps")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        if dry_run {
            output::line(format!(
                "{}: valid ({})",
                document.name,
                document.path.display()
            ));
        } else {
            output::line(format!(
                "{}: revision {}",
                document.name,
                output::cell(reply, "revision")
            ));
        }
        for step in &steps {
            if step.get("plugin").is_some_and(|plugin| !plugin.is_null()) {
                let cell = |key: &str| output::cell(step, key);
                output::line(format!(
                    "  {:<16} {}@{}",
                    cell("id"),
                    cell("plugin"),
                    cell("version")
                ));
            }
        }
    }
    Ok(())
}

fn request(client: &Client, document: &Document, dry_run: bool) -> reqwest::RequestBuilder {
    let mut request = client
        .scoped(Method::PUT, &format!("pipelines/{}", document.name))
        .header("content-type", document.content_type)
        .body(document.text.clone());
    if dry_run {
        request = request.query(&[("dry_run", "true")]);
    }
    request
}

/// One problem for all refused documents; where there are several, each mistake says its file.
fn all_problems(refused: &[(&Document, Value)], count: usize) -> Value {
    let mut errors = Vec::new();
    for (document, problem) in refused {
        let file = document.path.display();
        let own = problem
            .get("errors")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        if own.is_empty() {
            let detail = output::cell(problem, "detail");
            errors.push(serde_json::json!({"path": "", "message": format!("{file}: {detail}")}));
        }
        for mut error in own {
            let message = output::cell(&error, "message");
            if count > 1 {
                set(&mut error, "message", format!("{file}: {message}").into());
            }
            errors.push(error);
        }
    }
    let names: Vec<String> = refused
        .iter()
        .map(|(document, _)| document.path.display().to_string())
        .collect();
    let mut problem = refused
        .first()
        .map(|(_, problem)| problem.clone())
        .unwrap_or_default();
    let detail = format!("{} not applied: nothing was changed", names.join(", "));
    set(&mut problem, "detail", detail.into());
    set(&mut problem, "errors", errors.into());
    problem
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Value::Object(members) = object {
        members.insert(key.to_owned(), value);
    }
}

/// Directories stand for the documents in them, in the order of their names.
fn expand(files: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut all = Vec::new();
    for path in files {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let mut inside: Vec<PathBuf> = std::fs::read_dir(path)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                let extension = path.extension().and_then(|extension| extension.to_str());
                matches!(extension, Some("yaml" | "yml" | "json"))
            })
            .collect();
        inside.sort();
        if inside.is_empty() {
            return Err(Failure::Local(format!(
                "{} holds no .yaml, .yml or .json file",
                path.display()
            )));
        }
        all.extend(inside);
    }
    Ok(all)
}

fn read(path: PathBuf) -> Result<Document, Failure> {
    let text = input::read_text(&path, input::MOST_TEXT)
        .map_err(|error| Failure::Local(format!("cannot read {}: {error}", path.display())))?;
    let is_json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let own = if is_json {
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::Local(format!("{}: not JSON: {error}", path.display())))?;
        value.get("name").and_then(Value::as_str).map(str::to_owned)
    } else {
        let node = stepwell_document::parse_yaml(&text)
            .map_err(|problem| Failure::Local(format!("{}:{problem}", path.display())))?;
        let value = node.get("name").map(stepwell_document::Node::to_json);
        value.and_then(|value| value.as_str().map(str::to_owned))
    };
    let name = match own {
        Some(name) if name.parse::<stepwell_core::Name>().is_ok() => name,
        // The host says what is wrong with the name; the file's own is good enough to ask it.
        _ => stepwell_core::Name::suggest(&stem(&path))
            .map_or_else(|| "pipeline".to_owned(), String::from),
    };
    Ok(Document {
        name,
        text,
        content_type: if is_json {
            "application/json"
        } else {
            "application/yaml"
        },
        path,
    })
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let pipelines = client.list("pipelines").await?;
    if json {
        output::json(&serde_json::json!({"items": pipelines, "next_cursor": null}));
        return Ok(());
    }
    let rows = pipelines
        .iter()
        .map(|pipeline| {
            let triggers = pipeline
                .pointer("/document/triggers")
                .and_then(Value::as_array)
                .map(|triggers| triggers.iter().map(trigger).collect::<Vec<_>>().join(", "))
                .unwrap_or_default();
            vec![
                output::cell(pipeline, "name"),
                output::cell(pipeline, "revision"),
                triggers,
            ]
        })
        .collect();
    output::table(
        &["name", "revision", "triggers"],
        rows,
        "no pipelines: apply one with 'stepwell pipeline apply FILE'",
    );
    Ok(())
}

/// A trigger in a few words: `POST /digits`, `kafka digits`.
fn trigger(trigger: &Value) -> String {
    if let Some(http) = trigger.get("http") {
        let method = http.get("method").and_then(Value::as_str).unwrap_or("*");
        return format!("{method} {}", output::cell(http, "path"));
    }
    trigger.get("kafka").map_or_else(String::new, |kafka| {
        format!("kafka {}", output::cell(kafka, "topics"))
    })
}

async fn show(
    client: &Client,
    name: &str,
    revision: Option<u64>,
    json: bool,
) -> Result<(), Failure> {
    let path = match revision {
        Some(revision) => format!("pipelines/{name}/revisions/{revision}"),
        None => format!("pipelines/{name}"),
    };
    let reply = client.json(client.scoped(Method::GET, &path)).await?;
    if json {
        output::json(&reply);
        return Ok(());
    }
    output::line(format!(
        "{name}, revision {}",
        output::cell(&reply, "revision")
    ));
    let steps = reply
        .get("steps")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let rows = steps
        .iter()
        .map(|step| {
            ["id", "plugin", "version", "digest"]
                .map(|key| output::cell(step, key))
                .to_vec()
        })
        .collect();
    output::table(
        &["step", "plugin", "version", "digest"],
        rows,
        "no plugin steps",
    );
    output::line("");
    output::json(reply.get("document").unwrap_or(&Value::Null));
    Ok(())
}

async fn history(client: &Client, name: &str, json: bool) -> Result<(), Failure> {
    let revisions = client.list(&format!("pipelines/{name}/revisions")).await?;
    if json {
        output::json(&serde_json::json!({"items": revisions, "next_cursor": null}));
        return Ok(());
    }
    let rows = revisions
        .iter()
        .map(|revision| {
            let steps = revision
                .get("steps")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            let pins: Vec<String> = steps
                .iter()
                .filter(|step| step.get("plugin").is_some_and(|plugin| !plugin.is_null()))
                .map(|step| {
                    format!(
                        "{}@{}",
                        output::cell(step, "plugin"),
                        output::cell(step, "version")
                    )
                })
                .collect();
            vec![
                output::cell(revision, "revision"),
                output::cell(revision, "created_at"),
                pins.join(" → "),
            ]
        })
        .collect();
    output::table(&["revision", "created", "plugins"], rows, "no revisions");
    Ok(())
}

async fn rollback(
    client: &Client,
    name: &str,
    revision: Option<u64>,
    json: bool,
) -> Result<(), Failure> {
    let mut request = client.scoped(Method::POST, &format!("pipelines/{name}/rollback"));
    if let Some(revision) = revision {
        request = request.json(&serde_json::json!({"revision": revision}));
    }
    let reply = client.json(request).await?;
    if json {
        output::json(&reply);
    } else {
        output::line(format!(
            "{name}: revision {}",
            output::cell(&reply, "revision")
        ));
    }
    Ok(())
}

async fn remove(client: &Client, name: &str, json: bool) -> Result<(), Failure> {
    let reply = client
        .json(client.scoped(Method::DELETE, &format!("pipelines/{name}")))
        .await?;
    if json {
        output::json(&reply);
    } else {
        output::line(format!("removed {name}"));
    }
    Ok(())
}
