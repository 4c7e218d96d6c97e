//! `nkd serve`: the list of start-up steps, and the way down.

mod clusters;
mod health;
mod links;
mod log;
mod state;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry as Metrics;
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use log::init as init_log;

use crate::cluster::bringup::{self, Orders};
use crate::cluster::snapshot::take::{self, Snapshots};
use crate::cluster::snapshot::vault::Vault;
use crate::cluster::upgrade::follow;
use crate::cluster::watch::Watches;
use crate::content::channel::{self, ChannelError, Channels};
use crate::content::image::catalog::CatalogError;
use crate::content::image::{self, ImageStore};
use crate::content::registry::{GRACE, GarbageOrder, OciError, OciRegistry, UPLOADS};
use crate::fleet::fingerprint::Fingerprint;
use crate::fleet::lock;
use crate::fleet::pki::{Pki, PkiError};
use crate::fleet::reboots::Reboots;
use crate::http::{self, FirstToken, TlsServer};
use crate::ignition::TemplateSet;
use crate::machine::Registry;
use crate::netboot::plane::{BootPlane, NetbootFiles};
use crate::netboot::{bootplane, dhcp, leases::Leases, sighted::Sighted, tftp, tree::Tree};
use crate::service::{Addresses, AgentFile, Service};
use crate::settings::Settings;
use crate::store::{Seal, SealError, Store, StoreError};

/// How long everything together may take to end after SIGTERM.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);
/// How long what is cut off then may take to clear away behind it.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long closing the database may take after that.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// How often short-lived rows are dropped.
const PRUNE_INTERVAL: Duration = Duration::from_secs(600);
/// How often is looked whether somebody has set the clock.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);
/// How often machines that went silent on their way are looked for.
const SILENCE_INTERVAL: Duration = Duration::from_secs(30);

/// The service could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// State folder.
    #[error(transparent)]
    State(#[from] state::StateError),
    /// Key file.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Registry of container images.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// Images.
    #[error("the image store cannot be opened")]
    Images(#[from] CatalogError),
    /// HTTPS port.
    #[error(transparent)]
    Api(#[from] http::BindError),
    /// Boot plane port.
    #[error("http.boot_listen: {0}")]
    BootPlane(#[from] bootplane::BindError),
    /// DHCP ports.
    #[error(transparent)]
    Dhcp(#[from] dhcp::BindError),
    /// Interfaces.
    #[error(transparent)]
    Links(#[from] links::LinkError),
    /// TFTP port.
    #[error("tftp.listen: {0}")]
    Tftp(#[from] tftp::BindError),
    /// Metrics port.
    #[error(transparent)]
    Health(#[from] health::BindError),
    /// A signal handler could not be set.
    #[error("signals cannot be received")]
    Signal(#[source] std::io::Error),
}

fn reboot_rules(settings: &Settings) -> lock::Rules {
    let minutes = i64::from(settings.fleet_lock.lease_minutes);
    lock::Rules {
        slots: settings.fleet_lock.slots,
        groups_of_one: settings.fleet_lock.groups_per_client,
        lease: time::Duration::minutes(minutes),
    }
}

/// Runs the service until SIGTERM or SIGINT.
#[expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]
pub async fn serve(settings: Settings) -> Result<(), ServeError> {
    let now = OffsetDateTime::now_utc();
    let _lock = state::prepare(&settings.state_dir)?;
    let fresh = !settings.state_dir.join("nkd.db").exists();
    let seal = Seal::from_key_file(&settings.key_file, fresh)?;
    let store = Store::open(&settings.state_dir, seal.clone()).await?;
    let pki = Arc::new(Pki::load_or_create(&store, now).await?);
    state::publish_ca(&settings.state_dir, pki.ca_pem())?;
    let mut metrics = Metrics::default();
    let channel_metrics = channel::metrics::Metrics::register(&mut metrics);
    let image_metrics = image::metrics::Metrics::register(&mut metrics);
    let images = Arc::new(ImageStore::open(&settings.state_dir)?.with_metrics(image_metrics));
    let registry = Registry::new(store.clone());
    let oci = Arc::new(OciRegistry::open(store.clone(), images.blobs().clone(), &settings.state_dir)?);
    let stop = CancellationToken::new();
    let service = Arc::new(Service {
        registry: registry.clone(),
        images,
        reboots: Reboots::new(store.clone(), reboot_rules(&settings)),
        channels: Arc::new(
            Channels::new(store.clone(), &settings.state_dir)
                .with_metrics(channel_metrics)
                .with_grace(settings.channels.grace)
                .with_stop(stop.clone()),
        ),
        oci: Arc::clone(&oci),
        anonymous_pull: settings.registry.anonymous_pull,
        templates: templates(&settings)?,
        pki: Arc::clone(&pki),
        addresses: Addresses {
            advertise: settings.advertise.clone(),
            boot_port: settings.http.boot_listen.port(),
            api_port: settings.http.api_listen.port(),
        },
        discovery_image: settings.discovery_image.clone(),
        require_lease: settings.dhcp.mode == dhcp::Mode::Server && settings.dhcp.require_lease,
        agent_file: agent_file(&settings)?,
        orders: Orders::default(),
        upgrades: Notify::new(),
        snapshots: Snapshots::new(Vault::new(&settings.state_dir, seal)),
        watches: Watches::default(),
        dhcp: OnceLock::new(),
        first_token: FirstToken::default(),
        stopping: stop.clone(),
    });

    let (names, addresses) = certificate_names(&settings)?;
    let tls = pki.server_config(&store, &names, &addresses, now).await?;
    let api = TlsServer::bind(settings.http.api_listen, tls, http::router(Arc::clone(&service))).await?;
    let files = NetbootFiles { folder: settings.netboot.ipxe_dir.clone() };
    let plane = bootplane::Server::bind(
        bootplane::Config::new(vec![settings.http.boot_listen]),
        Arc::new(BootPlane::new(Arc::clone(&service), files.clone())),
        bootplane::Metrics::register(&mut metrics),
    )
    .await?;
    let tftp = match settings.tftp.enabled {
        true => {
            let config = tftp::Config { listen: settings.tftp.listen, ..tftp::Config::default() };
            let tree = Arc::new(Tree::new(files, service.addresses.clone(), registry.traces().clone()));
            Some(tftp::Server::bind(config, tree, tftp::Metrics::register(&mut metrics)).await?)
        }
        false => None,
    };
    let tasks = TaskTracker::new();
    let (sighted, sightings) = Sighted::new(registry.clone());
    let mut dhcp_config = links::dhcp_config(&settings.dhcp, settings.http.boot_listen.port())?;
    dhcp_config.ipxe_dir = Some(settings.netboot.ipxe_dir.clone());
    let dhcp = dhcp::Server::bind(
        dhcp_config,
        Arc::new(Leases::new(store.clone())),
        sighted,
        dhcp::Metrics::register(&mut metrics),
    )
    .await?;
    let _ = service.dhcp.set(dhcp.handle());
    let health =
        health::Health::bind(settings.http.metrics_listen, Arc::clone(&service), &settings.state_dir, metrics).await?;
    let token = state::first_admin(&settings.state_dir, &store, &service.first_token).await?;

    let fingerprint = Fingerprint::of_pem(pki.ca_pem()).ok_or(PkiError::Stored("CA certificate"))?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        api = %settings.http.api_listen,
        boot = %settings.http.boot_listen,
        dhcp = ?settings.dhcp.mode,
        tftp = settings.tftp.enabled,
        ca = %fingerprint,
        "nkd serves"
    );
    if settings.dhcp.mode == dhcp::Mode::Off {
        tracing::info!(
            "DHCP is off: set dhcp.mode to proxy or server and name an interface, or point your own DHCP server here"
        );
    }
    if let Some(name) = &settings.discovery_image
        && service.images.image(name)?.is_none()
    {
        tracing::warn!(
            image = name,
            "the discovery image is not in the store: unknown machines wait until it is imported"
        );
    }
    state::show_first_token(&settings.state_dir, token.as_deref(), fingerprint);

    bringup::learn(&service).await?;
    if let Err(error) = take::sweep(&service).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "files of snapshots that nobody knows of are left");
    }
    service.channels.tidy().await;
    service.channels.look_for_commits().await?;
    let channels = Arc::clone(&service.channels);
    tasks.spawn(async move {
        match channels.settle(OffsetDateTime::now_utc()).await {
            // The next start does.
            Ok(()) | Err(ChannelError::Stopped) => {}
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "refs and summaries of the channels are not up to date"
            ),
        }
    });
    tasks.spawn(api.run(stop.clone()));
    tasks.spawn(plane.run(stop.clone()));
    if let Some(tftp) = tftp {
        let stop = stop.clone();
        tasks.spawn(async move {
            if let Err(error) = tftp.run(stop).await {
                tracing::error!(%error, "TFTP ended");
            }
        });
    }
    tasks.spawn(dhcp.run(stop.clone()));
    tasks.spawn(sightings.run(stop.clone()));
    tasks.spawn(health.run(stop.clone()));
    tasks.spawn(prune(store.clone(), stop.clone()));
    tasks.spawn(channel::mirror::run(Arc::clone(&service.channels)));
    tasks.spawn(channel::delta::run(Arc::clone(&service.channels), registry.subscribe()));
    tasks.spawn(channel::retire::run(Arc::clone(&service.channels)));
    tasks.spawn(tidy_registry(Arc::clone(&service), stop.clone()));
    tasks.spawn(look_for_silent(registry.clone(), stop.clone()));
    tasks.spawn(bringup::run(Arc::clone(&service), stop.clone()));
    tasks.spawn(follow::run(Arc::clone(&service), stop.clone()));
    tasks.close();

    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signal)?;
    // Without systemd there is nobody to notify.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    let drained = async {
        tasks.wait().await;
        // Nobody gives orders any more. Those that were given go on, whether or not their callers are there.
        service.channels.ended().await;
    };
    let mut drained = std::pin::pin!(drained);
    if tokio::time::timeout(DRAIN_LIMIT, &mut drained).await.is_err() {
        tracing::warn!(left = tasks.len(), "the drain limit is over");
        // What they were at is begun again, or made right, at the next start.
        channel::end_programs();
        if tokio::time::timeout(END_LIMIT, drained).await.is_err() {
            tracing::warn!("something does not end");
        }
    }
    if tokio::time::timeout(CLOSE_LIMIT, store.close()).await.is_err() {
        tracing::warn!("the state database was still in use; nothing that was acknowledged is lost");
    }
    tracing::info!("stopped");
    Ok(())
}

fn templates(settings: &Settings) -> Result<TemplateSet, ServeError> {
    let mut set = TemplateSet::builtin();
    if let Some(folder) = &settings.templates_dir {
        for (name, text) in state::read_templates(folder)? {
            set.insert(name, text);
        }
    }
    Ok(set)
}

fn agent_file(settings: &Settings) -> Result<Option<AgentFile>, ServeError> {
    let Some(path) = &settings.agent_binary else { return Ok(None) };
    Ok(Some(AgentFile { path: path.clone(), sha256: state::sha256_of(path)? }))
}

/// Names and addresses of the service's certificate: localhost, the host's own addresses, what is advertised and given.
fn certificate_names(settings: &Settings) -> Result<(Vec<String>, Vec<IpAddr>), ServeError> {
    let mut names = vec!["localhost".to_owned()];
    let mut addresses = links::addresses()?;
    for extra in settings.http.names.iter().chain(&settings.advertise) {
        match extra.trim_matches(['[', ']']).parse() {
            Ok(ip) => addresses.push(ip),
            Err(_) => names.push(extra.clone()),
        }
    }
    // An address of this host that no interface shows, 127.0.7.1.
    addresses.extend(Some(settings.http.api_listen.ip()).filter(|ip| !ip.is_unspecified()));
    addresses.sort();
    addresses.dedup();
    names.dedup();
    Ok((names, addresses))
}

#[expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]
async fn prune(store: Store, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PRUNE_INTERVAL) => {}
        }
        if let Err(error) = store.prune(OffsetDateTime::now_utc()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "old rows could not be dropped");
        }
    }
}

/// What pushes that broke off left goes away by itself.
#[expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]
async fn tidy_registry(service: Arc<Service>, stop: CancellationToken) {
    let mut tidied: Option<Instant> = None;
    loop {
        let (now, at) = (OffsetDateTime::now_utc(), Instant::now());
        let mut errors = Vec::from_iter(service.oci.look_at_clock(now, at).await.err());
        if tidied.is_none_or(|last| at.saturating_duration_since(last) >= PRUNE_INTERVAL) {
            // At once, so that ages of uploads are known before somebody sets the clock.
            errors.extend(service.oci.expire_uploads(now, at).await.err());
            if tidied.is_some() {
                let order = GarbageOrder { dry_run: false, untagged: false, grace: GRACE, uploads: UPLOADS, now, at };
                errors.extend(service.oci.collect_garbage(&service.images, order).await.err());
            }
            tidied = Some(at);
        }
        for error in errors {
            // An import under way, most of the time: the next look comes.
            tracing::warn!(error = &error as &dyn std::error::Error, "the registry could not be tidied");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CLOCK_INTERVAL) => {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]
async fn look_for_silent(registry: Registry, stop: CancellationToken) {
    let listening_since = OffsetDateTime::now_utc();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SILENCE_INTERVAL) => {}
        }
        if let Err(error) = registry.look_for_silent(listening_since, OffsetDateTime::now_utc()).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "machines that went silent could not be looked for"
            );
        }
    }
}
