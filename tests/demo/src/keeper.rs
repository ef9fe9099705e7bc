//! What stays behind the demo: a process that keeps the services and the host running until it is told to stop.

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process, setsid};
use stepwell_test_services::{Kafka, Postgres, Redis, free_port};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use crate::Services;
use crate::host::command;
use crate::place::Place;

/// Guests' role and database, as in every other deployment.
const POSTGRES_INIT: &str = include_str!("../../../deploy/postgres-init.sql");
/// How long the host may take to stop before it is killed; longer than its grace period.
const GRACE: Duration = Duration::from_secs(45);

/// Runs until SIGTERM, SIGINT, or the host's own end.
pub(crate) fn run(place: &Place, services: Services) -> Result<()> {
    // The terminal and whoever started the demo may go.
    setsid().context("cannot start a session")?;
    let lock = File::create(place.keeper_lock())?;
    lock.try_lock()
        .context("another demo runs in this directory")?;
    fs::write(place.keeper_pid(), std::process::id().to_string())?;
    let real = (services == Services::Real).then(Real::start).transpose()?;
    write_config(place, real.as_ref())?;
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve(place));
    // The services after the host; the lock, by which others know that all is gone, last.
    drop(real);
    drop(lock);
    result
}

async fn serve(place: &Place) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut command = command(place);
    command
        .args(["serve", "--config"])
        .arg(place.config())
        .stdout(File::create(place.ready())?);
    let mut host = tokio::process::Command::from(command)
        .spawn()
        .context("cannot start the host")?;
    let pid = host.id().context("the host ended at once")?;
    fs::write(place.host_pid(), pid.to_string())?;
    tokio::select! {
        status = host.wait() => return ended(status?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop(&mut host, pid).await
}

async fn stop(host: &mut Child, pid: u32) -> Result<()> {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM);
    }
    match tokio::time::timeout(GRACE, host.wait()).await {
        Ok(status) => ended(status?),
        Err(_) => {
            host.kill().await?;
            Err(anyhow!(
                "the host did not stop within {} s and was killed",
                GRACE.as_secs()
            ))
        }
    }
}

fn ended(status: ExitStatus) -> Result<()> {
    ensure!(status.success(), "the host ended: {status}");
    Ok(())
}

/// The services of a deployment, each on a port of its own.
struct Real {
    postgres: Postgres,
    redis: Redis,
    kafka: Kafka,
}

impl Real {
    fn start() -> Result<Self> {
        thread::scope(|scope| {
            let kafka = scope.spawn(Kafka::start);
            let redis = scope.spawn(Redis::start);
            let postgres = start_postgres();
            let died = |_| anyhow!("starting a service failed");
            Ok(Self {
                postgres: postgres?,
                redis: redis.join().map_err(died)??,
                kafka: kafka.join().map_err(died)??,
            })
        })
    }
}

fn start_postgres() -> Result<Postgres> {
    let postgres = Postgres::start()?;
    for statement in POSTGRES_INIT
        .split_inclusive(';')
        .filter(|statement| statement.contains(';'))
    {
        postgres.psql(statement)?;
    }
    Ok(postgres)
}

fn write_config(place: &Place, real: Option<&Real>) -> Result<()> {
    let (listen, admin) = (port(8080)?, port(8081)?);
    let (catalog, kafka, redis, results) = match real {
        None => (
            "url = \"sqlite\"".to_owned(),
            "brokers = \"embedded\"".to_owned(),
            "backend = \"local\"".to_owned(),
            "backend = \"sqlite\"".to_owned(),
        ),
        Some(Real {
            postgres,
            redis,
            kafka,
        }) => {
            let results = postgres
                .url_of("results")
                .replacen("stepwell@", "guests:guests@", 1);
            fs::write(place.data.join("results.url"), results)?;
            (
                format!("url = {:?}", postgres.url()),
                format!("brokers = {:?}", kafka.brokers()),
                format!("backend = \"redis\"\nurl = {:?}", redis.url()),
                "backend = \"postgres\"\nurl = { file = \"results.url\" }".to_owned(),
            )
        }
    };
    let models = toml::Value::from(place.models().display().to_string());
    let config = format!(
        "# The demo's configuration; relative paths are relative to this file.

[server]
listen = \"127.0.0.1:{listen}\"
admin_listen = \"127.0.0.1:{admin}\"
data_dir = \"data\"

[catalog]
{catalog}

[kafka]
{kafka}

[models]
directory = {models}

[bindings.models.digits]
model = \"digits\"

[bindings.vectors.scans]
backend = \"local\"
dimension = 64
metric = \"cosine\"

[bindings.keyvalue.main-redis]
{redis}

[bindings.sql.results]
{results}
"
    );
    fs::write(place.config(), config).context("cannot write the configuration")
}

/// `usual` if nobody has it, else a free one.
fn port(usual: u16) -> Result<u16> {
    TcpListener::bind(("127.0.0.1", usual)).map_or_else(|_| free_port(), |_| Ok(usual))
}
