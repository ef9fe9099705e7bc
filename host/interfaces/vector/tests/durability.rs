//! An acknowledged upsert survives `kill -9`, and no upsert survives in part.
//!
//! This is its own `main`, since it runs itself again as the process that is killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stepwell_vector::{
    Health, Listing, Metric, Place, Vector, VectorBackend, VectorBindingConfig, Vectors,
};

const ROUNDS: usize = 5;
const BATCH: usize = 40;

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, directory, round] = arguments.as_slice()
        && role == "write-until-killed"
    {
        runtime.block_on(write(Path::new(directory), round));
        return;
    }
    runtime.block_on(kill_and_count());
    println!("test acknowledged_upserts_survive_kill_9 ... ok");
}

async fn open(directory: &Path) -> Vectors {
    let config = VectorBindingConfig {
        backend: VectorBackend::Local,
        dimension: 32,
        metric: Metric::Cosine,
    };
    let vectors = Vectors::open(directory, BTreeMap::from([("scans".to_owned(), config)])).await;
    assert_eq!(vectors.state()[0].health, Health::Ok);
    vectors
}

fn soon() -> Place<'static> {
    Place::default_until(Instant::now() + Duration::from_secs(60))
}

async fn write(directory: &Path, round: &str) {
    let vectors = open(directory).await;
    let store = vectors.store("scans").unwrap();
    for batch in 0.. {
        let rows = (0..BATCH)
            .map(|row| Vector {
                id: format!("{round}/{batch:05}/{row:03}"),
                values: vec![row as f32 + 1.0; 32],
                sparse: None,
                metadata: None,
            })
            .collect();
        store.upsert(&soon(), rows).await.unwrap();
        println!("{round}/{batch:05}");
        std::io::stdout().flush().unwrap();
    }
}

async fn kill_and_count() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("write-until-killed")
            .arg(directory.path())
            .arg(round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..20 + round * 7 {
            acknowledged.insert(lines.next().expect("the child writes on").unwrap());
        }
        // SIGKILL, most likely in the middle of a transaction. What it had printed by then counts.
        child.kill().unwrap();
        acknowledged.extend(lines.map_while(Result::ok).filter(|line| line.len() == 7));
        child.wait().unwrap();

        let vectors = open(directory.path()).await;
        let store = vectors.store("scans").unwrap();
        let mut rows: BTreeMap<String, usize> = BTreeMap::new();
        let mut token = None;
        loop {
            let listing = Listing {
                token,
                ..Listing::default()
            };
            let page = store.list(&soon(), listing).await.unwrap();
            for id in page.ids {
                *rows
                    .entry(id.rsplit_once('/').unwrap().0.to_owned())
                    .or_default() += 1;
            }
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        for batch in &acknowledged {
            assert_eq!(
                rows.get(batch),
                Some(&BATCH),
                "{batch} was acknowledged and is not whole"
            );
        }
        for (batch, count) in &rows {
            assert_eq!(*count, BATCH, "{batch} is there in part");
        }
        vectors.close().await;
    }
    assert!(acknowledged.len() >= ROUNDS * 20);
}
