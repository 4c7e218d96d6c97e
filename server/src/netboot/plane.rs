//! What the boot plane answers on each path.
//!
//! ```text
//! /boot.ipxe                  the first script: asks again with what iPXE knows of the machine
//! /boot.ipxe?mac=...          the decision for this machine, as a script
//! /autoexec.ipxe              the first script, for iPXE builds that look for it
//! /boot/<boot>/initrd         initramfs of the image with the first-stage overlay of this boot
//! /images/<image>/<kind>      kernel, initramfs, rootfs, disk
//! /ipxe/<file>                iPXE binaries
//! /agent/nkd-agent            the agent, for images that do not carry it
//! ```

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nkd_api::MacAddr;
use nkd_api::agent::Purpose;
use nkd_api::facts::Firmware;
use nkd_api::image::{ArtifactKind, Image};
use nkd_api::machine::{Explanation, Identity, LocalBoot, Machine};
use nkd_api::profile::Profile;
use uuid::Uuid;

use super::bootplane::{Answer as HttpAnswer, Body, Cache, Handler, Method, Request, Segment};
use super::decide::{Answer, BootRequest, Decision, Known, decide};
use super::ipxe::{self, LiveBoot};
use super::leases;
use crate::content::image::profile;
use crate::fleet::config::{self, ConfigError};
use crate::ignition::overlay;
use crate::machine::lifecycle::{BootTaken, Input};
use crate::machine::{RegistryError, identity};
use crate::service::Service;
use crate::store::{RowEffects, StoreError};
use crate::trace::Trace;

/// A boot request could not be answered for a reason of our own: 503, never "no".
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// Registry or store.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Image store.
    #[error("the image store failed: {0}")]
    Images(String),
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Kernel arguments.
    #[error(transparent)]
    Arguments(#[from] profile::ProfileError),
    /// An address that is none.
    #[error("the address {0} cannot be written as a URL")]
    Url(String),
}

/// The boot plane's paths over the service.
pub struct BootPlane {
    service: Arc<Service>,
    files: NetbootFiles,
}

/// The iPXE binaries, served over HTTP and TFTP alike.
#[derive(Debug, Clone)]
pub struct NetbootFiles {
    /// Folder with `undionly.kpxe`, `snponly.efi`, ...
    pub folder: PathBuf,
}

impl NetbootFiles {
    /// Names that firmware may ask for. A name is looked up here, never joined to a path unseen.
    pub const NAMES: [&str; 5] = ["undionly.kpxe", "ipxe.pxe", "snponly.efi", "ipxe.efi", "arm64/snponly.efi"];

    /// The file behind a name.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        Self::NAMES.contains(&name).then(|| self.folder.join(name))
    }
}

impl BootPlane {
    /// Over the service and the folder of iPXE binaries.
    #[must_use]
    pub fn new(service: Arc<Service>, files: NetbootFiles) -> Self {
        Self { service, files }
    }

    async fn route(&self, request: &Request) -> Result<HttpAnswer, PlaneError> {
        let local = request.local.ip();
        let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        match parts.as_slice() {
            ["boot.ipxe"] if has_key(&request.query, "mac") => self.script(request).await,
            ["boot.ipxe" | "autoexec.ipxe"] => Ok(script(ipxe::entry(&self.service.addresses.boot_url(local)))),
            ["boot", id, "initrd"] => self.initrd(id, request.peer.ip().to_canonical()).await,
            ["images", name, kind] => self.artifact(name, kind),
            ["ipxe", rest @ ..] => Ok(match self.files.path(&rest.join("/")) {
                Some(path) => file(&path, "application/efi"),
                None => not_found(),
            }),
            ["agent", "nkd-agent"] => Ok(match &self.service.agent_file {
                Some(agent) => file(&agent.path, "application/octet-stream"),
                None => not_found(),
            }),
            [""] => {
                Ok(HttpAnswer::text(200, "nkd boot plane. Machines start at /boot.ipxe; people use the nkd command.\n"))
            }
            _ => Ok(not_found()),
        }
    }

    /// The trace of whoever asks: by the MAC address in the query, or by where it speaks from.
    fn trace(&self, request: &Request) -> Option<Trace> {
        let traces = self.service.registry.traces();
        match query(&request.query, "mac").and_then(|mac| mac.parse::<MacAddr>().ok()) {
            Some(mac) => Some(traces.of_mac(mac)),
            None => traces.at(request.peer.ip()),
        }
    }

    async fn script(&self, request: &Request) -> Result<HttpAnswer, PlaneError> {
        let text = |key: &str| query(&request.query, key);
        let mac = match text("mac").as_deref().map(str::parse::<MacAddr>) {
            Some(Ok(mac)) if mac.is_usable() => mac,
            _ => return Ok(HttpAnswer::text(400, "mac: write it as 52:54:00:aa:00:01\n")),
        };
        let platform = text("platform").unwrap_or_default();
        let identity = Identity {
            macs: vec![mac],
            uuid: text("uuid").as_deref().and_then(identity::usable_uuid),
            serial: text("serial").as_deref().and_then(identity::usable_text),
            vendor: text("vendor").as_deref().and_then(identity::usable_text),
            product: text("product").as_deref().and_then(identity::usable_text),
            firmware: match platform.as_str() {
                "pcbios" => Firmware::Bios,
                "efi" => Firmware::Uefi,
                _ => Firmware::Unknown,
            },
            // A BIOS build of iPXE calls itself i386 on every PC.
            architecture: match text("arch").as_deref() {
                Some("x86_64") => Some("x86_64".to_owned()),
                Some("arm64") => Some("aarch64".to_owned()),
                _ => None,
            },
        };
        let peer = request.peer.ip().to_canonical();
        if let Some(refusal) = self.not_its_lease(&[mac], peer).await? {
            return Ok(refusal);
        }
        let machine = match self.service.registry.sighted(identity, Some(peer), "boot", false).await {
            Ok(machine) => machine,
            Err(RegistryError::TooManyUnknown) => return Ok(busy("too many unknown machines; ask the operator")),
            // What cannot be written down (a full disk) keeps nobody from a disk that holds its system.
            Err(error) => match self.service.registry.by_mac(mac).await? {
                Some(machine) if machine.installed_generation == Some(machine.generation) => machine,
                _ => return Err(error.into()),
            },
        };
        let images = Images::of(&self.service, Some(&machine))?;
        let boot_request = BootRequest { architecture: machine.identity.architecture.clone() };
        let decision = decide(&boot_request, images.known(Some(&machine)));
        tracing::info!(trace = %Trace::of(&machine), machine = %mac, name = %machine.name, answer = decision.answer.name(), reason = %decision.reason, "boot decision");
        let answer = match request.method {
            Method::Get => {
                self.execute(&machine, &decision, request.local.ip(), has_key(&request.query, "entry")).await?
            }
            // Asking for the head alone takes nothing: the length of the script is not known without making a boot.
            Method::Head => HttpAnswer::text(200, ""),
        };
        Ok(answer.with_cache(Cache::NoCache))
    }

    /// Where this service hands out the addresses, a machine asks from the one that it was given: knowing somebody's MAC
    /// address is not enough to boot as that machine.
    async fn not_its_lease(&self, macs: &[MacAddr], peer: IpAddr) -> Result<Option<HttpAnswer>, PlaneError> {
        if !self.service.require_lease {
            return Ok(None);
        }
        let lease = leases::holder(self.service.registry.store(), peer).await?;
        let Some(mac) = macs.first().filter(|_| !lease.is_some_and(|holder| macs.contains(&holder))) else {
            return Ok(None);
        };
        tracing::warn!(machine = %mac, %peer, holder = ?lease.map(|m| m.to_string()), "what a machine boots was asked for from an address that is not leased to it: refused");
        let text = format!(
            "{peer} is not leased to {mac} by this service; `nkd machine explain {mac}` says what it would be told\n"
        );
        Ok(Some(HttpAnswer::text(403, text)))
    }

    /// Carries a decision out: makes the boot durable, then gives the script.
    async fn execute(
        &self,
        machine: &Machine,
        decision: &Decision<'_>,
        local: IpAddr,
        through_entry: bool,
    ) -> Result<HttpAnswer, PlaneError> {
        let registry = &self.service.registry;
        let (taken, effects, answer) = match &decision.answer {
            Answer::NotNow => {
                let reason = decision.reason.clone();
                (BootTaken::NotNow { reason }, RowEffects::default(), script(ipxe::not_now(&decision.reason)))
            }
            Answer::LocalDisk { how } => {
                let how = match (how, through_entry) {
                    // Our entry script would take 404 as a reason to ask again.
                    (LocalBoot::NotFound, true) => LocalBoot::Exit,
                    (how, _) => *how,
                };
                let answer =
                    ipxe::local_disk(how, machine.identity.firmware, &machine.name).map_or_else(not_found, script);
                (BootTaken::LocalDisk, RowEffects::default(), answer)
            }
            Answer::Discovery { image, profile } => {
                let prepared = config::prepare_boot(&self.service, machine, image, profile, Purpose::Discovery, local)?;
                let script = self.live_script(machine, image, profile, prepared.boot.id, &decision.reason, local)?;
                let effects =
                    RowEffects { tokens: prepared.tokens, boot: Some(prepared.boot), ..RowEffects::default() };
                (BootTaken::Discovery, effects, script)
            }
            Answer::LiveInstall { image, profile, generation } => {
                let prepared = config::prepare_boot(&self.service, machine, image, profile, Purpose::Install, local)?;
                let script = self.live_script(machine, image, profile, prepared.boot.id, &decision.reason, local)?;
                let effects =
                    RowEffects { tokens: prepared.tokens, boot: Some(prepared.boot), ..RowEffects::default() };
                (BootTaken::LiveInstall { generation: *generation }, effects, script)
            }
        };
        let needs_no_record = taken == BootTaken::LocalDisk;
        match registry.apply(machine.id, Input::Booted(taken), effects).await {
            Err(RegistryError::Store(error)) if needs_no_record => {
                tracing::warn!(trace = %Trace::of(machine), error = &error as &dyn std::error::Error, "a boot from the local disk could not be written down");
            }
            other => drop(other?),
        }
        Ok(answer)
    }

    fn live_script(
        &self,
        machine: &Machine,
        image: &Image,
        profile: &Profile,
        boot: Uuid,
        reason: &str,
        local: IpAddr,
    ) -> Result<HttpAnswer, PlaneError> {
        let base = self.service.addresses.boot_url(local);
        Ok(script(live_script(&base, machine, image, profile, &format!("{base}/boot/{boot}/initrd"), reason)?))
    }

    /// With the overlay that holds a token: for the machine alone, and only until it has used the token.
    async fn initrd(&self, id: &str, peer: IpAddr) -> Result<HttpAnswer, PlaneError> {
        let Ok(id) = id.parse::<Uuid>() else { return Ok(not_found()) };
        let store = self.service.registry.store();
        let Some(boot) = store.boot(id).await? else { return Ok(not_found()) };
        let Some((machine, _)) = store.machine(boot.machine).await? else { return Ok(not_found()) };
        if let Some(refusal) = self.not_its_lease(&machine.identity.macs, peer).await? {
            return Ok(refusal);
        }
        if machine.current_boot == Some(boot.id) {
            return Ok(HttpAnswer::text(410, "this boot has its configuration: a new boot has another address\n"));
        }
        let Some(image) = self.image(&boot.image)? else { return Ok(not_found()) };
        let Some(initramfs) = image.artifact(ArtifactKind::Initramfs) else { return Ok(not_found()) };
        let (file, len) = self.service.images.open_blob(&initramfs.sha256).map_err(images_failed)?;
        let etag = id.to_string();
        let body = Body::new(vec![
            Segment::File { file: Arc::new(file), offset: 0, len },
            Segment::Zeros(overlay::padding(len)),
            Segment::Bytes(boot.overlay.into()),
        ]);
        Ok(HttpAnswer::new(200, "application/octet-stream", body).with_etag(etag).with_cache(Cache::NoCache))
    }

    fn artifact(&self, name: &str, kind: &str) -> Result<HttpAnswer, PlaneError> {
        let kinds = [ArtifactKind::Kernel, ArtifactKind::Initramfs, ArtifactKind::Rootfs, ArtifactKind::Disk];
        let Some(kind) = kinds.into_iter().find(|k| k.as_str() == kind) else { return Ok(not_found()) };
        let Some(image) = self.image(name)? else { return Ok(not_found()) };
        let Some(artifact) = image.artifact(kind) else { return Ok(not_found()) };
        let (file, len) = self.service.images.open_blob(&artifact.sha256).map_err(images_failed)?;
        Ok(HttpAnswer::file("application/octet-stream", Arc::new(file), len)
            .with_etag(artifact.sha256.to_string())
            .with_cache(Cache::NoCache))
    }

    fn image(&self, name: &str) -> Result<Option<Arc<Image>>, PlaneError> {
        self.service.images.image(name).map_err(images_failed)
    }
}

#[async_trait]
impl Handler for BootPlane {
    /// The address of a boot is known to its machine alone, for it leads to a token.
    fn shown<'a>(&self, path: &'a str) -> Cow<'a, str> {
        match path.strip_prefix("/boot/").and_then(|rest| rest.split_once('/')) {
            Some((id, rest)) => Cow::Owned(format!("/boot/{}.../{rest}", id.get(..8).unwrap_or_default())),
            None => Cow::Borrowed(path),
        }
    }

    async fn answer(&self, request: &Request) -> HttpAnswer {
        match self.route(request).await {
            Ok(answer) => answer,
            Err(error) => {
                let trace = self.trace(request).map(tracing::field::display);
                tracing::error!(trace, path = %self.shown(&request.path), peer = %request.peer, error = &error as &dyn std::error::Error, "boot plane failed");
                HttpAnswer::unavailable("the service cannot answer now; see its log\n", Duration::from_secs(5))
            }
        }
    }

    fn finished(&self, request: &Request, status: u16, sent: u64, complete: bool) {
        let trace = self.trace(request).map(tracing::field::display);
        tracing::info!(trace, peer = %request.peer, path = %self.shown(&request.path), status, sent, complete, "boot plane answered");
    }
}

/// The images that a decision may need, looked up once.
struct Images {
    assigned: Option<(Arc<Image>, Profile)>,
    discovery: Option<(Arc<Image>, Profile)>,
}

impl Images {
    fn of(service: &Service, machine: Option<&Machine>) -> Result<Self, PlaneError> {
        let find = |name: Option<&str>| -> Result<Option<(Arc<Image>, Profile)>, PlaneError> {
            let Some(name) = name else { return Ok(None) };
            let Some(image) = service.images.image(name).map_err(images_failed)? else { return Ok(None) };
            Ok(profile::by_name(&image.profile).map(|profile| (image, profile)))
        };
        let assigned = machine.and_then(|m| m.assignment.as_ref()).map(|a| a.image.as_str());
        Ok(Self { assigned: find(assigned)?, discovery: find(service.discovery_image.as_deref())? })
    }

    fn known<'a>(&'a self, machine: Option<&'a Machine>) -> Known<'a> {
        let borrow =
            |pair: &'a Option<(Arc<Image>, Profile)>| pair.as_ref().map(|(image, profile)| (&**image, profile));
        Known { machine, assigned: borrow(&self.assigned), discovery: borrow(&self.discovery) }
    }
}

/// What the next network boot of this MAC would be told, and why; nothing is changed by asking.
pub async fn explain(service: &Service, mac: MacAddr, local: IpAddr) -> Result<Explanation, PlaneError> {
    let machine = service.registry.by_mac(mac).await?;
    let images = Images::of(service, machine.as_ref())?;
    let architecture = machine.as_ref().and_then(|m| m.identity.architecture.clone());
    let decision = decide(&BootRequest { architecture }, images.known(machine.as_ref()));
    let base = service.addresses.boot_url(local);
    let stranger;
    let subject = match &machine {
        Some(machine) => machine,
        None => {
            let identity = Identity { macs: vec![mac], ..Identity::default() };
            stranger = crate::machine::lifecycle::new_machine(Uuid::nil(), identity, time::OffsetDateTime::UNIX_EPOCH);
            &stranger
        }
    };
    let script = match &decision.answer {
        Answer::NotNow => ipxe::not_now(&decision.reason),
        Answer::LocalDisk { how } => ipxe::local_disk(*how, subject.identity.firmware, &subject.name)
            .unwrap_or_else(|| "404 Not Found\n".to_owned()),
        Answer::Discovery { image, profile } | Answer::LiveInstall { image, profile, .. } => {
            live_script(&base, subject, image, profile, &format!("{base}/boot/<boot>/initrd"), &decision.reason)?
        }
    };
    Ok(Explanation {
        mac,
        machine: machine.as_ref().map(|m| m.name.clone()),
        answer: decision.answer.name().to_owned(),
        reason: decision.reason,
        script,
        last_step: machine.and_then(|m| m.steps.last().cloned()),
    })
}

fn live_script(
    base: &str,
    machine: &Machine,
    image: &Image,
    profile: &Profile,
    initrd_url: &str,
    reason: &str,
) -> Result<String, PlaneError> {
    let rootfs = format!("{base}/images/{}/rootfs", image.name);
    let rootfs_url = rootfs.parse().map_err(|_| PlaneError::Url(rootfs.clone()))?;
    let args = profile::live_args(profile, &profile::LiveBoot { rootfs_url: &rootfs_url, console: &[], extra: &[] })?;
    Ok(ipxe::live(&LiveBoot {
        title: &format!("{}: {reason}; booting {}", machine.name, image.name),
        kernel_url: &format!("{base}/images/{}/kernel", image.name),
        initrd_url,
        args: &args,
    }))
}

fn script(text: String) -> HttpAnswer {
    HttpAnswer::text(200, text).with_cache(Cache::NoCache)
}

fn busy(why: &str) -> HttpAnswer {
    HttpAnswer::unavailable(format!("{why}\n"), Duration::from_secs(10))
}

fn not_found() -> HttpAnswer {
    HttpAnswer::text(404, "not found\n")
}

#[expect(clippy::disallowed_methods, reason = "opens the file that is sent")]
fn file(path: &std::path::Path, content_type: &'static str) -> HttpAnswer {
    let opened = std::fs::File::open(path).and_then(|f| f.metadata().map(|m| (f, m.len())));
    match opened {
        Ok((file, len)) => HttpAnswer::file(content_type, Arc::new(file), len),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a boot file cannot be opened");
            HttpAnswer::unavailable("this boot file cannot be opened; see the log\n", Duration::from_secs(30))
        }
    }
}

fn images_failed(error: impl std::fmt::Display) -> PlaneError {
    PlaneError::Images(error.to_string())
}

fn has_key(query: &str, key: &str) -> bool {
    url::form_urlencoded::parse(query.as_bytes()).any(|(k, _)| k == key)
}

/// A value of the query. iPXE escapes a space as `%20` and leaves a plus as it is, unlike an HTML form.
fn query(query: &str, key: &str) -> Option<String> {
    url::form_urlencoded::parse(query.replace('+', "%2B").as_bytes())
        .find(|(k, _)| k == key)
        .map(|(_, v)| v.into_owned())
        .filter(|v| !v.is_empty())
}
