use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use semver::Version;
use stepwell_api::{
    ApiError, AuditQuery, AuditRecord, Binding, Change, ErrorCode, Expected, Followed, Gate, Items,
    LogLevel, LogLine, LogQuery, Management, Model, ModelVersion, Namespace, NewToken,
    NewlyMadeToken, NotAdmitted, Outcome, Page, Part, Plugin, PluginVersion, PutPipeline,
    PutPlugin, Readiness, Revision, State, Step, Tensor, Token, Usage,
};
use stepwell_core::{Digest, Name, Principal, Problem, Quotas, Role};
use time::OffsetDateTime;

/// What the management of these tests knows.
#[derive(Default)]
pub(crate) struct Fake {
    plugins: Mutex<BTreeMap<(Name, Version), Bytes>>,
    pipelines: Mutex<BTreeMap<Name, Vec<Revision>>>,
    namespaces: Mutex<BTreeMap<Name, Quotas>>,
    /// What the audit log was asked for.
    pub(crate) audited: Mutex<Vec<AuditQuery>>,
    /// Tokens that were asked for.
    pub(crate) made: Mutex<Vec<NewToken>>,
    pub(crate) is_down: AtomicBool,
}

/// Lets in whom these tests call by role: the token `viewer` is a viewer of all namespaces, `viewer/default` of one. `right` is
/// the operator's.
#[derive(Default)]
pub(crate) struct FakeGate {
    pub(crate) is_open: bool,
    /// Every token was revoked.
    pub(crate) revoked: AtomicBool,
    /// Who was refused what.
    pub(crate) refused: Mutex<Vec<(String, &'static str, String)>>,
}

#[async_trait]
impl Gate for FakeGate {
    async fn admit(&self, token: Option<&str>) -> Result<Principal, NotAdmitted> {
        let token = match token {
            _ if self.is_open => return Ok(Principal::development()),
            None => return Err(NotAdmitted::Missing),
            Some(_) if self.revoked.load(Ordering::Relaxed) => return Err(NotAdmitted::Unknown),
            Some("right") => return Ok(Principal::admin_token()),
            Some("old") => return Err(NotAdmitted::Expired),
            Some("far") => return Err(NotAdmitted::Unavailable),
            Some(token) => token,
        };
        let (role, namespace) = match token.split_once('/') {
            Some((role, namespace)) => (role, Some(namespace.parse().unwrap())),
            None => (token, None),
        };
        Ok(Principal {
            id: token.into(),
            name: token.into(),
            role: role.parse::<Role>().map_err(|_| NotAdmitted::Unknown)?,
            namespace,
        })
    }

    async fn refused(&self, principal: &Principal, operation: &'static str, subject: String) {
        let refused = (principal.id.to_string(), operation, subject);
        self.refused.lock().unwrap().push(refused);
    }

    fn again_after(&self) -> Duration {
        Duration::from_millis(20)
    }
}

#[async_trait]
impl Management for Fake {
    async fn has_namespace(&self, namespace: &Name) -> Result<bool, ApiError> {
        let is_default = *namespace == Name::default_namespace();
        Ok(is_default || self.namespaces.lock().unwrap().contains_key(namespace))
    }

    async fn namespaces(&self, _: &Page) -> Result<Items<Namespace>, ApiError> {
        let namespaces = self.namespaces.lock().unwrap();
        Ok(Items {
            items: namespaces.iter().map(namespace_of).collect(),
            next_cursor: None,
        })
    }

    async fn namespace(&self, name: &Name) -> Result<Namespace, ApiError> {
        let namespaces = self.namespaces.lock().unwrap();
        let quotas = namespaces.get(name).copied().unwrap_or_default();
        Ok(namespace_of((name, &quotas)))
    }

    async fn put_namespace(
        &self,
        _: &Principal,
        name: &Name,
        quotas: &Quotas,
    ) -> Result<(bool, Namespace), ApiError> {
        let old = self
            .namespaces
            .lock()
            .unwrap()
            .insert(name.clone(), *quotas);
        Ok((old.is_none(), namespace_of((name, quotas))))
    }

    async fn delete_namespace(&self, _: &Principal, name: &Name) -> Result<(), ApiError> {
        let gone = self.namespaces.lock().unwrap().remove(name);
        gone.map(|_| ())
            .ok_or_else(|| ApiError::not_found(format!("namespace {name}")))
    }

    async fn create_token(
        &self,
        by: &Principal,
        new: &NewToken,
    ) -> Result<NewlyMadeToken, ApiError> {
        self.made.lock().unwrap().push(new.clone());
        Ok(NewlyMadeToken {
            token: "sw_secret".to_owned(),
            made: token_of(by, new),
        })
    }

    async fn tokens(&self, _: &Page) -> Result<Items<Token>, ApiError> {
        let made = self.made.lock().unwrap();
        let host = Principal::host();
        Ok(Items {
            items: made.iter().map(|new| token_of(&host, new)).collect(),
            next_cursor: None,
        })
    }

    async fn token(&self, id: &str) -> Result<Token, ApiError> {
        let made = self.made.lock().unwrap();
        let new = made.iter().find(|_| id == "t1");
        new.map(|new| token_of(&Principal::host(), new))
            .ok_or_else(|| ApiError::not_found("token"))
    }

    async fn revoke_token(&self, _: &Principal, id: &str) -> Result<(), ApiError> {
        self.token(id).await?;
        self.made.lock().unwrap().clear();
        Ok(())
    }

    async fn audit(&self, query: &AuditQuery) -> Result<Items<AuditRecord>, ApiError> {
        self.audited.lock().unwrap().push(query.clone());
        let record = AuditRecord {
            id: 7,
            time: OffsetDateTime::UNIX_EPOCH,
            who: "t1".to_owned(),
            name: "ci".to_owned(),
            action: "plugin.put".to_owned(),
            namespace: query.namespace.clone(),
            subject: "plugin decode@1.0.0".to_owned(),
            digest: None,
            revision: None,
            outcome: Outcome::Done,
        };
        Ok(Items {
            items: vec![record],
            next_cursor: None,
        })
    }

    async fn put_plugin_version(
        &self,
        _: &Principal,
        _: &Name,
        name: &Name,
        version: &Version,
        component: Bytes,
    ) -> Result<PutPlugin, ApiError> {
        if !component.starts_with(b"\0asm") {
            return Err(ApiError::new(
                ErrorCode::NotWasm,
                "the file does not start as WebAssembly does",
            ));
        }
        let key = (name.clone(), version.clone());
        let mut plugins = self.plugins.lock().unwrap();
        let created = match plugins.get(&key) {
            Some(existing) if *existing != component => {
                return Err(ApiError::new(
                    ErrorCode::VersionExists,
                    format!("{name}@{version} has other bytes"),
                ));
            }
            Some(_) => false,
            None => true,
        };
        let stored = version_of(name, version, &component);
        plugins.insert(key, component);
        Ok(PutPlugin {
            created,
            version: stored,
        })
    }

    async fn plugins(&self, _: &Name, page: &Page) -> Result<Items<Plugin>, ApiError> {
        let names: std::collections::BTreeSet<Name> = self
            .plugins
            .lock()
            .unwrap()
            .keys()
            .map(|(name, _)| name.clone())
            .collect();
        let after = page.cursor.clone().unwrap_or_default();
        let mut items = Vec::new();
        for name in names.iter().filter(|name| name.as_str() > after.as_str()) {
            items.push(self.plugin(&Name::default_namespace(), name).await?);
        }
        let more = items.len() > page.limit as usize;
        items.truncate(page.limit as usize);
        Ok(Items {
            next_cursor: items
                .last()
                .filter(|_| more)
                .map(|last| last.name.to_string()),
            items,
        })
    }

    async fn plugin(&self, _: &Name, name: &Name) -> Result<Plugin, ApiError> {
        let plugins = self.plugins.lock().unwrap();
        let versions: Vec<PluginVersion> = plugins
            .iter()
            .rev()
            .filter(|((of, _), _)| of == name)
            .map(|((_, version), bytes)| version_of(name, version, bytes))
            .collect();
        let latest = versions.first().map(|version| version.version.clone());
        if latest.is_none() {
            return Err(ApiError::not_found(format!("plugin {name}")));
        }
        Ok(Plugin {
            name: name.clone(),
            latest,
            versions,
        })
    }

    async fn plugin_version(
        &self,
        namespace: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<PluginVersion, ApiError> {
        let bytes = self.component(namespace, name, version).await?;
        Ok(version_of(name, version, &bytes))
    }

    async fn component(&self, _: &Name, name: &Name, version: &Version) -> Result<Bytes, ApiError> {
        let plugins = self.plugins.lock().unwrap();
        plugins
            .get(&(name.clone(), version.clone()))
            .cloned()
            .ok_or_else(|| ApiError::not_found(format!("plugin {name}@{version}")))
    }

    async fn delete_plugin_version(
        &self,
        _: &Principal,
        namespace: &Name,
        name: &Name,
        version: &Version,
    ) -> Result<(), ApiError> {
        self.component(namespace, name, version).await?;
        if name.as_str() == "used" {
            return Err(ApiError::new(
                ErrorCode::InUse,
                format!("plugin {name}@{version} is used by pipeline reader"),
            ));
        }
        let key = (name.clone(), version.clone());
        self.plugins.lock().unwrap().remove(&key);
        Ok(())
    }

    async fn put_pipeline(
        &self,
        _: &Principal,
        _: &Name,
        name: &Name,
        put: PutPipeline,
    ) -> Result<(Change, Revision), ApiError> {
        if put.source.contains("oops") {
            let mistake = |line, message: &str| Problem {
                path: "/steps/0/plugin".to_owned(),
                line: Some(line),
                column: Some(5),
                message: message.to_owned(),
                hint: None,
            };
            return Err(
                ApiError::new(ErrorCode::InvalidPipeline, "the document has 2 mistakes")
                    .with_errors([mistake(1, "one"), mistake(2, "two")]),
            );
        }
        let mut pipelines = self.pipelines.lock().unwrap();
        let current = pipelines.get(name).and_then(|all| all.last().cloned());
        check(put.expected, current.as_ref())?;
        let next = Revision {
            name: name.clone(),
            revision: current.as_ref().map_or(0, |current| current.revision) + 1,
            document: serde_json::json!({"json": put.json, "text": put.source}),
            source: put.source,
            steps: vec![Step {
                id: "only".parse().unwrap(),
                plugin: Some("decode".parse().unwrap()),
                version: Some(Version::new(1, 0, 0)),
                digest: Some(Digest::of(b"x")),
                model: None,
            }],
            created_at: (!put.dry_run).then_some(OffsetDateTime::UNIX_EPOCH),
        };
        if put.dry_run {
            return Ok((Change::Validated, next));
        }
        let change = match current {
            Some(current) if current.document == next.document => {
                return Ok((Change::Unchanged, current));
            }
            Some(_) => Change::Changed,
            None => Change::Created,
        };
        pipelines
            .entry(name.clone())
            .or_default()
            .push(next.clone());
        Ok((change, next))
    }

    async fn pipelines(&self, _: &Name, _: &Page) -> Result<Items<Revision>, ApiError> {
        let pipelines = self.pipelines.lock().unwrap();
        let items = pipelines.values().filter_map(|all| all.last().cloned());
        Ok(Items {
            items: items.collect(),
            next_cursor: None,
        })
    }

    async fn pipeline(&self, _: &Name, name: &Name) -> Result<Revision, ApiError> {
        let pipelines = self.pipelines.lock().unwrap();
        pipelines
            .get(name)
            .and_then(|all| all.last().cloned())
            .ok_or_else(|| ApiError::not_found(format!("pipeline {name}")))
    }

    async fn delete_pipeline(
        &self,
        _: &Principal,
        namespace: &Name,
        name: &Name,
        expected: Expected,
    ) -> Result<(), ApiError> {
        let current = self.pipeline(namespace, name).await?;
        check(expected, Some(&current))?;
        self.pipelines.lock().unwrap().remove(name);
        Ok(())
    }

    async fn pipeline_revisions(
        &self,
        _: &Name,
        name: &Name,
        _: &Page,
    ) -> Result<Items<Revision>, ApiError> {
        let pipelines = self.pipelines.lock().unwrap();
        let all = pipelines
            .get(name)
            .ok_or_else(|| ApiError::not_found(format!("pipeline {name}")))?;
        Ok(Items {
            items: all.iter().rev().cloned().collect(),
            next_cursor: None,
        })
    }

    async fn pipeline_revision(
        &self,
        _: &Name,
        name: &Name,
        revision: u64,
    ) -> Result<Revision, ApiError> {
        let pipelines = self.pipelines.lock().unwrap();
        pipelines
            .get(name)
            .and_then(|all| all.iter().find(|one| one.revision == revision).cloned())
            .ok_or_else(|| ApiError::not_found(format!("revision {revision} of pipeline {name}")))
    }

    async fn rollback_pipeline(
        &self,
        _: &Principal,
        namespace: &Name,
        name: &Name,
        to: Option<u64>,
        expected: Expected,
    ) -> Result<(Change, Revision), ApiError> {
        let current = self.pipeline(namespace, name).await?;
        check(expected, Some(&current))?;
        let to = to.unwrap_or(current.revision - 1);
        let mut old = self.pipeline_revision(namespace, name, to).await?;
        old.revision = current.revision + 1;
        let mut pipelines = self.pipelines.lock().unwrap();
        pipelines.get_mut(name).unwrap().push(old.clone());
        Ok((Change::Changed, old))
    }

    async fn invoke(&self, _: &Name, pipeline: &Name, request: Request<Body>) -> Response<Body> {
        let content_type = request.headers()["content-type"].clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::builder()
            .status(203)
            .header("stepwell-run-id", "the-run")
            .header("content-type", content_type)
            .body(Body::from(
                [pipeline.as_str().as_bytes(), b": ", &body].concat(),
            ))
            .unwrap()
    }

    async fn logs(&self, _: &Name, query: &LogQuery) -> Result<Items<LogLine>, ApiError> {
        Ok(Items {
            items: vec![line(&format!("{query:?}"))],
            next_cursor: None,
        })
    }

    async fn follow_logs(&self, _: &Name, query: &LogQuery) -> Result<Followed, ApiError> {
        if query.step.is_some() {
            // One that never has a line.
            return Ok(futures::stream::pending().boxed());
        }
        if query.pipeline.is_some() {
            // One that never ends, and always has a line.
            return Ok(futures::stream::repeat_with(|| line("again")).boxed());
        }
        Ok(futures::stream::iter(["one", "two\nlines"].map(line)).boxed())
    }

    async fn models(&self, _: &Page) -> Result<Items<Model>, ApiError> {
        Ok(Items {
            items: vec![self.model("half_plus_two").await?],
            next_cursor: None,
        })
    }

    async fn model(&self, name: &str) -> Result<Model, ApiError> {
        if name != "half_plus_two" {
            return Err(ApiError::not_found(format!("model {name}")));
        }
        Ok(Model {
            name: name.to_owned(),
            versions: vec![ModelVersion {
                version: "1".to_owned(),
                state: "available".to_owned(),
                reason: None,
                platform: "tensorflow_savedmodel".to_owned(),
                inputs: vec![Tensor {
                    name: "x".to_owned(),
                    datatype: "f32".to_owned(),
                    shape: vec![-1, 1],
                }],
                outputs: Vec::new(),
            }],
        })
    }

    async fn bindings(&self, _: &Principal, _: &Page) -> Result<Items<Binding>, ApiError> {
        if self.is_down.load(Ordering::Relaxed) {
            return Err(ApiError::internal("secret-cause at 10.0.0.1"));
        }
        Ok(Items {
            items: vec![Binding {
                kind: "keyvalue".to_owned(),
                name: "main-redis".to_owned(),
                backend: "redis".to_owned(),
                state: State::Down,
                reason: Some("cannot be reached".to_owned()),
            }],
            next_cursor: None,
        })
    }

    async fn readiness(&self, with_names: bool) -> Readiness {
        let status = if self.is_down.load(Ordering::Relaxed) {
            State::Down
        } else {
            State::Degraded
        };
        Readiness {
            status,
            parts: vec![Part {
                name: "catalog".to_owned(),
                status,
                reason: Some(if with_names { "own/p" } else { "one" }.to_owned()),
            }],
        }
    }

    fn metrics(&self) -> String {
        "# HELP stepwell_up whether the host is up\n".to_owned()
    }
}

fn check(expected: Expected, current: Option<&Revision>) -> Result<(), ApiError> {
    let current = current.map(|current| current.revision);
    let holds = match expected {
        Expected::Any => true,
        Expected::Exists => current.is_some(),
        Expected::Absent => current.is_none(),
        Expected::Revision(number) => current == Some(number),
    };
    if holds {
        Ok(())
    } else {
        Err(ApiError::new(
            ErrorCode::Stale,
            format!("the pipeline is at {current:?}"),
        ))
    }
}

fn version_of(name: &Name, version: &Version, bytes: &[u8]) -> PluginVersion {
    PluginVersion {
        name: name.clone(),
        version: version.clone(),
        digest: Digest::of(bytes),
        world: "stepwell:pipeline/step@0.1.0".to_owned(),
        imports: Vec::new(),
        exports: vec!["stepwell:pipeline/handler@0.1.0".to_owned()],
        size: bytes.len() as u64,
        compile_ms: 7,
        created_at: OffsetDateTime::UNIX_EPOCH,
    }
}

fn line(message: &str) -> LogLine {
    LogLine {
        time: OffsetDateTime::UNIX_EPOCH,
        level: LogLevel::Info,
        pipeline: None,
        step: None,
        run_id: None,
        message: message.to_owned(),
        fields: serde_json::Map::new(),
    }
}

fn namespace_of((name, quotas): (&Name, &Quotas)) -> Namespace {
    Namespace {
        name: name.clone(),
        quotas: (*quotas).into(),
        usage: Usage::default(),
        created_at: OffsetDateTime::UNIX_EPOCH,
    }
}

fn token_of(by: &Principal, new: &NewToken) -> Token {
    Token {
        id: "t1".to_owned(),
        name: new.name.clone(),
        role: new.role,
        namespace: new.namespace.clone(),
        created_by: by.id.to_string(),
        created_at: OffsetDateTime::UNIX_EPOCH,
        expires_at: new.expires_at,
        last_used_at: None,
    }
}
