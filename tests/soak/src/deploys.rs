use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use rand::Rng as _;
use rand::rngs::StdRng;
use reqwest::Method;
use serde_json::Value;
use stepwell_tests::{Reply, guest, send};

use crate::Soak;
use crate::expected::{Expected, State};
use crate::target::{Visit, unexpected};

/// One pipeline's only deployer: it changes it in every way there is, and says beforehand what it may become.
pub(crate) async fn deployer(soak: Arc<Soak>, index: usize, rng: StdRng) {
    let Some(expected) = soak.pipelines.get(index) else {
        return;
    };
    let mut deployer = Deployer {
        soak: &soak,
        expected,
        index,
        rng,
        next: 1,
        revisions: BTreeMap::new(),
        certain: true,
    };
    while !soak.stop.is_cancelled() {
        let pass = soak.gate.pass().await;
        if let Some(visit) = soak.target.visit()
            && let Err(error) = deployer.act(&visit).await
            && soak.target.undisturbed(&visit)
        {
            soak.findings.wrong(format!("{}: {error:#}", expected.name));
        }
        drop(pass);
        let pause = Duration::from_millis(deployer.rng.random_range(0..200));
        tokio::time::sleep(pause).await;
    }
}

struct Deployer<'a> {
    soak: &'a Soak,
    expected: &'a Expected,
    index: usize,
    rng: StdRng,
    /// Tags and versions count up, so that each is another.
    next: u64,
    /// The tag of each revision that was acknowledged.
    revisions: BTreeMap<u64, u64>,
    /// Whether the last change was answered.
    certain: bool,
}

impl Deployer<'_> {
    async fn act(&mut self, visit: &Visit) -> Result<()> {
        if !self.certain {
            self.ask(visit).await?;
        }
        self.next += 1;
        match self.rng.random_range(0..100) {
            0..50 => self.apply(visit).await,
            50..62 => self.roll_back(visit).await,
            62..67 => self.delete(visit).await,
            67..80 => self.upload(visit).await,
            80..90 => self.upload_rubbish(visit).await,
            90..95 => self.apply_nonsense(visit).await,
            _ => self.apply_stale(visit).await,
        }
    }

    fn path(&self) -> String {
        format!("/namespaces/default/pipelines/{}", self.expected.name)
    }

    fn document(&self, tag: u64) -> String {
        format!(
            "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}, timeout: 5s}}\nsteps:\n\
             \x20 - {{id: only, plugin: probe@1, config: {{tag: \"{tag}\"}}}}\n",
            name = self.expected.name
        )
    }

    /// After an answer that got lost: what became of it?
    async fn ask(&mut self, visit: &Visit) -> Result<()> {
        let reply = visit
            .manage(Method::GET, &self.path(), Bytes::new())
            .await?;
        let state = match reply.status.as_u16() {
            404 => State::Absent,
            200 => State::Tagged(tag(&reply)?),
            _ => return Err(unexpected(&reply)),
        };
        self.learn(&reply, state);
        self.soak.findings.count("state asked for after a kill");
        Ok(())
    }

    fn learn(&mut self, reply: &Reply, state: State) {
        match state {
            State::Absent => self.revisions.clear(),
            State::Tagged(tag) => {
                if let Some(revision) = reply.json().get("revision").and_then(Value::as_u64) {
                    self.revisions.insert(revision, tag);
                    // A host keeps 1,000 of them; some that it has may never have been acknowledged.
                    self.revisions = self.revisions.split_off(&revision.saturating_sub(500));
                }
            }
        }
        self.expected.settle(state);
        self.certain = true;
    }

    async fn apply(&mut self, visit: &Visit) -> Result<()> {
        let state = State::Tagged(self.next);
        self.change(
            visit,
            Method::PUT,
            self.path(),
            self.document(self.next),
            state,
            &[200, 201],
        )
        .await
    }

    async fn roll_back(&mut self, visit: &Visit) -> Result<()> {
        let known: Vec<(u64, u64)> = self.revisions.iter().map(|(r, t)| (*r, *t)).collect();
        let Some((revision, tag)) = known.get(self.rng.random_range(0..known.len().max(1))) else {
            return Ok(());
        };
        let (path, body) = (
            format!("{}/rollback", self.path()),
            format!("{{\"revision\": {revision}}}"),
        );
        self.change(visit, Method::POST, path, body, State::Tagged(*tag), &[200])
            .await
    }

    async fn delete(&mut self, visit: &Visit) -> Result<()> {
        self.change(
            visit,
            Method::DELETE,
            self.path(),
            String::new(),
            State::Absent,
            &[204, 404],
        )
        .await
    }

    /// Asks for a change, and takes it for done only when it was acknowledged.
    async fn change(
        &mut self,
        visit: &Visit,
        method: Method,
        path: String,
        body: String,
        state: State,
        good: &[u16],
    ) -> Result<()> {
        self.expected.propose(state);
        self.certain = false;
        let what = format!("{method} {}", path.replace(&self.expected.name, "…"));
        let reply = visit.manage(method, &path, body).await?;
        if good.contains(&reply.status.as_u16()) {
            self.learn(&reply, state);
            self.soak.findings.count(&what);
            return Ok(());
        }
        // A version that only old revisions had pinned may have been removed since.
        if reply.status == 409 && reply.json().get("code") == Some(&"plugin-gone".into()) {
            self.soak.findings.count("rollback to a removed version");
            return Ok(());
        }
        // A host that is being stopped may say so; what became of the change is asked for then.
        if reply.status == 503 && !self.soak.target.undisturbed(visit) {
            return Ok(());
        }
        Err(unexpected(&reply))
    }

    /// A version of its own with bytes of its own, and again, and with other bytes.
    async fn upload(&mut self, visit: &Visit) -> Result<()> {
        let path = format!(
            "/namespaces/default/plugins/probe/versions/1.{}.{}",
            self.index + 1,
            self.next
        );
        let bytes = marked(guest("hostile")?, &path);
        for (bytes, status) in [
            (bytes.clone(), 201),
            (bytes.clone(), 200),
            (marked(bytes, "other"), 409),
        ] {
            let reply = visit.manage(Method::PUT, &path, bytes).await?;
            if reply.status.as_u16() != status {
                return Err(unexpected(&reply));
            }
            self.soak.findings.count(&format!("upload {status}"));
        }
        // What a pipeline has pinned meanwhile stays.
        let reply = visit.manage(Method::DELETE, &path, Bytes::new()).await?;
        match reply.status.as_u16() {
            204 => self.soak.findings.count("plugin version removed"),
            409 => self.soak.findings.count("plugin version in use"),
            _ => return Err(unexpected(&reply)),
        }
        Ok(())
    }

    async fn upload_rubbish(&mut self, visit: &Visit) -> Result<()> {
        let mut bytes = guest("hostile")?;
        let length = bytes.len();
        match self.rng.random_range(0..4) {
            0 => bytes.truncate(self.rng.random_range(0..length)),
            1 => {
                bytes = (0..self.rng.random_range(0..5000))
                    .map(|_| self.rng.random())
                    .collect()
            }
            2 => bytes = b"\0asm\x01\0\0\0".to_vec(),
            _ => {
                // Somewhere in the header and the types, where it always matters or is always found.
                if let Some(byte) = bytes.get_mut(self.rng.random_range(0..8)) {
                    *byte ^= 0x55;
                }
            }
        }
        let path = format!(
            "/namespaces/default/plugins/rubbish-{}/versions/1.0.0",
            self.index
        );
        let reply = visit.manage(Method::PUT, &path, bytes).await?;
        if reply.status != 422 {
            return Err(unexpected(&reply));
        }
        self.soak.findings.count("rubbish refused");
        Ok(())
    }

    async fn apply_nonsense(&mut self, visit: &Visit) -> Result<()> {
        let document = self.document(self.next).replace("probe@1", "nobody@1");
        let reply = visit.manage(Method::PUT, &self.path(), document).await?;
        if reply.status != 422 || reply.code() != "invalid-pipeline" {
            return Err(unexpected(&reply));
        }
        self.soak.findings.count("nonsense refused");
        Ok(())
    }

    async fn apply_stale(&mut self, visit: &Visit) -> Result<()> {
        let request = visit
            .http
            .put(format!("{}/api/v1{}", visit.admin, self.path()))
            .header("if-match", "\"999999\"")
            .body(self.document(self.next));
        let reply = send(request).await?;
        if reply.status != 412 {
            return Err(unexpected(&reply));
        }
        self.soak.findings.count("stale change refused");
        Ok(())
    }
}

/// The tag in a pipeline's document.
fn tag(reply: &Reply) -> Result<u64> {
    let document: Value = reply.json();
    let tag = document.pointer("/document/steps/0/config/tag");
    tag.and_then(Value::as_str)
        .and_then(|tag| tag.parse().ok())
        .context("a document without its tag")
}

/// The component with a custom section at its end: the same program, other bytes.
fn marked(mut component: Vec<u8>, mark: &str) -> Vec<u8> {
    let name = b"mark";
    let content: Vec<u8> = [&[4u8][..], name, mark.as_bytes()].concat();
    component.push(0);
    // One byte is enough for lengths below 128.
    component.push(u8::try_from(content.len().min(127)).unwrap_or(127));
    component.extend(content.iter().take(127));
    component
}
