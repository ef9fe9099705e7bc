//! `stepwell serve`: puts the host together, runs it, and takes it down in order.

mod announce;
mod signals;
mod upkeep;

use std::fs::File;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use stepwell_api::ApiOptions;
use stepwell_catalog::{Catalog, CatalogError, Directory};
use stepwell_engine::{CompileBy, Engine, EngineConfig};
use stepwell_http_trigger::{Answers, Auth, HttpTrigger, KeyTimes, ServeConfig};
use stepwell_inference::Models;
use stepwell_kafka_trigger::KafkaTriggers;
use stepwell_logging::LogStore;
use stepwell_pipeline::{Dispatcher, Registry, RunEnd, RunObserver};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{error, info, warn};

use self::announce::announce;
use self::signals::StopSignals;
use self::upkeep::{hold_to_quotas, upkeep};
use crate::access::Tokens;
use crate::ahead::Ahead;
use crate::cli::ServeArgs;
use crate::config::{Config, Overrides};
use crate::deployer::{Deployer, OnChange};
use crate::factory::{Factory, fetch};
use crate::files;
use crate::guest;
use crate::jwks::Fetcher;
use crate::management::{Components, Host};
use crate::readiness::{Health, Remote};
use crate::runtimes::{Runtimes, opened_on};
use crate::services::{Services, start_models};
use crate::sweeping::sweeping;
use crate::telemetry::Telemetry;
use crate::tls::LiveTls;

/// The command of a compiler's process: the host starts it for each component, and nobody else.
pub(crate) const COMPILE_WORKER: &str = "compile-worker";

/// Connections of the admin listener at once.
const ADMIN_CONNECTIONS: usize = 1024;

/// Connections that the kernel keeps for a listener until they are accepted.
const BACKLOG: u32 = 1024;
/// The longest that a deploy may wait, however long compiling may take.
const LONGEST_DEPLOY: Duration = Duration::from_secs(24 * 3600);

/// Time for requests of the management API to end when everything else has.
const ADMIN_GRACE: Duration = Duration::from_secs(2);

/// Runs the host until it is told to stop. The error is what kept it from starting, or what it could not finish.
pub(crate) fn run(args: ServeArgs) -> Result<()> {
    let overrides = Overrides {
        data_dir: args.data_dir,
        listen: args.listen,
        admin_listen: args.admin_listen,
    };
    let config = Config::load(args.config.as_deref(), &overrides)?;
    let telemetry = Telemetry::start(config.otlp_endpoint.as_deref(), &config.service_name)?;
    describe_metrics();
    for warning in &config.warnings {
        warn!("configuration: {warning}");
    }
    files::raise_limit(ServeConfig::default().connections + ADMIN_CONNECTIONS);
    let models = start_models(&config)?;
    let runtimes = Runtimes::start()?;
    let guests = runtimes.data();
    let result = runtimes.run(serve(&config, &telemetry, models, guests));
    telemetry.stop();
    result
}

fn describe_metrics() {
    stepwell_api::describe_metrics();
    stepwell_egress::describe_metrics();
    stepwell_engine::describe_metrics();
    stepwell_http_trigger::describe_metrics();
    stepwell_inference::describe_metrics();
    stepwell_kafka_trigger::describe_metrics();
    stepwell_keyvalue::describe_metrics();
    stepwell_logging::describe_metrics();
    stepwell_pipeline::describe_metrics();
    stepwell_sql::describe_metrics();
    stepwell_vector::describe_metrics();
    crate::lines::describe_metrics();
}

/// Runs a host until the first signal, then lets it stop in order. A second signal stops it at once, whatever it does then.
async fn serve(
    config: &Config,
    telemetry: &Telemetry,
    models: Models,
    guests: Handle,
) -> Result<()> {
    // From the very first: a host that is told to stop while it starts stops in order too.
    let mut signals = StopSignals::listen()?;
    let told_to_stop = CancellationToken::new();
    let mut host = pin!(host(config, telemetry, models, guests, &told_to_stop));
    tokio::select! {
        ended = &mut host => return ended,
        () = signals.next() => {}
    }
    info!(grace_period = ?config.grace_period, "stopping: a second signal stops at once");
    told_to_stop.cancel();
    tokio::select! {
        ended = &mut host => ended,
        () = signals.next() => bail!("stopped at once by a second signal"),
    }
}

/// A host from its start to its end. Runs on the control runtime; `guests` is the one that guests are polled on.
async fn host(
    config: &Config,
    telemetry: &Telemetry,
    models: Models,
    guests: Handle,
    told_to_stop: &CancellationToken,
) -> Result<()> {
    // Sockets and the data directory first: what is taken already is found before anything is done.
    let data = bind(config.listen, "data listener ([server] listen)");
    let data = opened_on(&guests, data).await?;
    let admin = bind(
        config.admin_listen,
        "admin listener ([server] admin_listen)",
    )
    .await?;
    let (data_address, admin_address) = (data.local_addr()?, admin.local_addr()?);
    let live = |listener, files: &Option<_>| {
        let start = |files| LiveTls::start(listener, files);
        files.as_ref().map(start).transpose()
    };
    let (data_tls, admin_tls) = (
        live("data", &config.tls)?,
        live("admin", &config.admin_tls)?,
    );
    let _lock = lock(&config.data_dir)?;

    let stopping = CancellationToken::new();
    let own = [admin_address];
    let services = Services::open(config, models, &own);
    let services = Arc::new(opened_on(&guests, services).await?);
    let catalog = Arc::new(Catalog::new(&config.catalog)?.limited(config.limits.catalog));
    match catalog.migrate().await {
        Ok(()) => {}
        Err(error @ CatalogError::Unavailable { .. }) => {
            warn!(%error, "starting without the catalog; it is tried again")
        }
        Err(error) => return Err(error.into()),
    }
    let directory = Arc::new(Directory::new(&catalog, config.keep_audit));
    let tokens = Arc::new(Tokens::new(
        catalog.clone(),
        directory.clone(),
        config.admin_token.as_ref(),
        config.admin_listen.ip().is_loopback(),
    ));
    let engine_defaults = EngineConfig::new(config.data_dir.join("cache"));
    let guest_memory = config
        .limits
        .guest_memory
        .unwrap_or(engine_defaults.guest_memory);
    let engine = Engine::new(
        EngineConfig {
            max_component: config.limits.component,
            compile_timeout: config.limits.compile,
            guest_memory,
            compile_memory: config.limits.compile_memory,
            compile_by: CompileBy::Program {
                // This program, even if another version lies in its place by now.
                path: "/proc/self/exe".into(),
                arguments: vec![COMPILE_WORKER.into()],
            },
            cache_bytes: config.limits.cache,
            loaded_components: config.limits.loaded_components,
            interfaces: guest::INTERFACES.map(str::to_owned).to_vec(),
            ..engine_defaults
        },
        guest::link,
    )?;
    let swept = engine.clone();
    let observer = Arc::new(FailureLog(services.logs.clone()));
    let dispatcher = Dispatcher::with(
        config.limits.concurrent_runs,
        telemetry.span_hook(),
        Some(observer),
    );
    dispatcher.set_event_memory({
        let engine = engine.clone();
        Box::new(move |namespace| {
            let mut held = engine.tenant(namespace.as_str()).hold();
            Box::new(move |bytes| held.set(bytes))
        })
    });
    let registry = Arc::new(Registry::default());
    let auth = Auth::new(
        tokens.clone(),
        config.jwt.issuer.as_ref(),
        Arc::new(Fetcher::new(config.jwt.host(), services.egress.clone())?),
        KeyTimes::default(),
    );
    let http = Arc::new(
        HttpTrigger::with_auth(dispatcher.clone(), auth).with_body_bytes(config.limits.bodies),
    );
    let kafka = async { KafkaTriggers::start(config.kafka.clone(), Arc::new(dispatcher.clone())) };
    let kafka = Arc::new(opened_on(&guests, kafka).await?);
    let triggers: OnChange = {
        let (http, kafka) = (http.clone(), kafka.clone());
        Box::new(move |deployments| {
            http.apply(deployments);
            kafka.apply(deployments);
        })
    };
    let factory = Factory::new(
        engine.clone(),
        catalog.clone(),
        services.clone(),
        dispatcher.clone(),
    );
    let deployer = Deployer::new(
        catalog.clone(),
        factory,
        Ahead::new(engine.clone(), fetch(&catalog)),
        registry.clone(),
        &config.bindings,
        config.jwt.host(),
        triggers,
    );
    let deployer = deployer
        .with_subscriptions(config.limits.subscriptions)
        .with_reach(config.reach.clone());
    let deployer = Arc::new(deployer);
    if let Err(error) = deployer.reconcile().await {
        warn!(%error, "no pipelines yet");
    }
    let tidy = engine.clone();
    let (metrics, deployed) = (telemetry.metrics.clone(), registry.clone());
    let host = Arc::new(Host {
        catalog: catalog.clone(),
        directory: directory.clone(),
        components: Components::new(catalog.clone(), engine.clone(), deployer.clone()),
        engine,
        deployer: deployer.clone(),
        services: services.clone(),
        registry,
        http: http.clone(),
        health: Health {
            remote: Remote::new(catalog.clone(), services.clone()),
            kafka: kafka.clone(),
            deployer: deployer.clone(),
            tls: data_tls.iter().chain(&admin_tls).cloned().collect(),
            stopping: stopping.clone(),
        },
        render_metrics: {
            let (dispatcher, http) = (dispatcher.clone(), http.clone());
            Box::new(move || {
                dispatcher.record_use();
                http.record_use();
                metrics.render()
            })
        },
        stopping: stopping.clone(),
        patience: config.limits.compile.saturating_mul(5).min(LONGEST_DEPLOY),
        guests: guests.clone(),
    });
    let api = stepwell_api::router(
        host,
        ApiOptions {
            gate: tokens.clone(),
            component_limit: config.limits.component,
            upload_bytes: config.limits.uploads,
        },
    );
    let admin_stop = CancellationToken::new();
    let admin_server = tokio::spawn(stepwell_http_trigger::serve(
        admin,
        Arc::new(Management(api)),
        ServeConfig {
            listener: "admin",
            connections: ADMIN_CONNECTIONS,
            // Probes and the operator come through, whatever else goes on.
            displaces_busy: true,
            grace: ADMIN_GRACE,
            tls: admin_tls.as_ref().map(|live| live.tls.clone()),
            ..ServeConfig::default()
        },
        admin_stop.clone(),
    ));
    for live in data_tls.iter().chain(&admin_tls) {
        tokio::spawn(live.clone().follow(stopping.clone()));
    }
    let data_server = guests.spawn(stepwell_http_trigger::serve(
        data,
        http,
        ServeConfig {
            grace: config.grace_period,
            tls: data_tls.as_ref().map(|live| live.tls.clone()),
            ..ServeConfig::default()
        },
        stopping.clone(),
    ));
    let follower = tokio::spawn({
        let (deployer, stopping) = (deployer.clone(), stopping.clone());
        async move { deployer.follow(stopping).await }
    });
    let known = tokio::spawn({
        let (directory, stopping) = (directory.clone(), stopping.clone());
        async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = directory.follow() => {}
            }
        }
    });
    let quotas = tokio::spawn(hold_to_quotas(
        directory.quotas(),
        dispatcher.clone(),
        stopping.clone(),
    ));
    let upkeep = tokio::spawn(upkeep(
        telemetry.metrics.clone(),
        dispatcher.clone(),
        deployed,
        kafka.clone(),
        stopping.clone(),
    ));
    let sweeping = tokio::spawn(sweeping(swept, guest_memory, stopping.clone()));
    let is_development = tokens.is_development();
    if is_development {
        warn!(
            "development mode: whoever reaches the admin listener may do everything, without a token; set [server] admin_token to ask for one"
        );
    }
    if kafka.is_embedded() {
        info!(
            broker = kafka.bootstrap(),
            "embedded Kafka broker: for laptops, it keeps nothing on disk"
        );
    }
    let url = |tls: bool, address| format!("{}://{address}", if tls { "https" } else { "http" });
    announce(
        url(data_tls.is_some(), data_address),
        url(admin_tls.is_some(), admin_address),
        kafka.is_embedded().then(|| kafka.bootstrap().to_string()),
        is_development,
    );

    // From here on there is time for it.
    let tidy = tokio::spawn(async move { tidy.tidy().await });

    told_to_stop.cancelled().await;
    tidy.abort();
    let deadline = Instant::now() + config.grace_period;
    stopping.cancel();
    let subscriptions = tokio::task::spawn_blocking(move || kafka.shutdown(deadline));
    let _ = data_server.await;
    dispatcher.close();
    let unfinished = dispatcher.drained(deadline).await;
    let _ = subscriptions.await;
    let _ = tokio::join!(follower, quotas, known, upkeep, sweeping);
    admin_stop.cancel();
    let _ = admin_server.await;
    directory.store_uses().await;
    services.vectors.close().await;
    services.databases.close().await;
    catalog.close().await;
    if !unfinished.is_empty() {
        for run in &unfinished {
            error!(run, "run did not finish within the grace period");
        }
        bail!(
            "{} run(s) did not finish within the grace period",
            unfinished.len()
        );
    }
    info!("stopped: every run has finished");
    Ok(())
}

/// The management API on its listener.
struct Management(Router);

impl Answers for Management {
    type Body = Body;

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match self.0.clone().oneshot(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

async fn bind(address: std::net::SocketAddr, what: &str) -> Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        // Its connections inherit it: the kernel closes those whose other end is gone.
        socket.set_keepalive(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let bound: std::io::Result<TcpListener> = listen();
    bound.with_context(|| {
        format!("cannot listen on {address} for the {what}: is another host running?")
    })
}

/// Makes the data directory this host's alone: embedded stores hold parts of themselves in memory.
fn lock(data_dir: &Path) -> Result<File> {
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot make the data directory {}", data_dir.display()))?;
    let path = data_dir.join("host.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    // The kernel gives the lock back when the process ends, however it ends.
    if file.try_lock().is_err() {
        bail!(
            "another host uses the data directory {}: stop it, or choose another with --data-dir",
            data_dir.display()
        );
    }
    Ok(file)
}

/// Runs that failed, in the log that `stepwell logs` shows.
struct FailureLog(Arc<LogStore>);

impl RunObserver for FailureLog {
    fn run_ended(&self, end: &RunEnd<'_>) {
        if let Some(error) = end.error {
            let deployment = end.deployment;
            self.0.run_error(
                &deployment.namespace,
                &deployment.name,
                deployment.revision,
                end.run,
                error,
            );
        }
    }
}
