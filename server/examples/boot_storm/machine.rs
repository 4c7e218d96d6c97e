//! One machine on its way from power-on to an enrolled agent.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use nkd_api::MacAddr;
use nkd_api::agent::{
    AGENT_CONFIG_PATH, AgentConfig, EnrollRequest, EnrollResponse, Report as Told, ReportEvent, Task, TaskAnswer,
};
use nkd_api::facts::{Disk, Facts, Firmware, Nic};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use sha2::{Digest as _, Sha512};
use url::Url;
use uuid::Uuid;

use crate::http::{self, Request};
use crate::relay::{Client, Lease, Relay};
use crate::report::Report;
use crate::stay::Node;
use crate::tftp;

/// How often a step is tried.
const TRIES: u32 = 6;
/// How long the first try of a DHCP exchange may take; each further one twice as long as the one before.
const DHCP_LIMIT: Duration = Duration::from_secs(1);
/// How long a fetch may take at first.
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a fetch that failed at once.
const PAUSE: Duration = Duration::from_millis(500);

/// What the scripts of the service sleep when there is nothing to boot yet.
const SCRIPT_SLEEP: Duration = Duration::from_secs(10);

pub struct Machine {
    pub number: u16,
    pub server: IpAddr,
    pub relay: Arc<Relay>,
    pub tls: Arc<CryptoProvider>,
    pub report: Arc<Report>,
}

/// Where Ignition's first stage says that the configuration is.
struct FirstStage {
    url: Url,
    token: String,
    digest: String,
    ca: String,
}

type Try<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl Machine {
    pub fn mac(&self) -> MacAddr {
        let [high, low] = self.number.to_be_bytes();
        MacAddr([0x52, 0x54, 0, 0x0a, high, low])
    }

    /// From its first packet to the agent of its live system; with `stays` to the agent of its installed one.
    pub async fn boot(&self, stays: bool) -> Result<Option<Node>> {
        let begun = Instant::now();
        let firmware = self.lease("dhcp_firmware", Client::Firmware).await?;
        let own = firmware.address;
        let fetch = |_| -> Try<'_, (usize, u32)> { Box::pin(tftp::fetch(own, self.server, &firmware.boot_file)) };
        let (size, _) = self.step("tftp", FETCH_LIMIT * 4, fetch).await?;
        ensure!(size > 50_000, "a boot file of {size} bytes");

        let ipxe = self.lease("dhcp_ipxe", Client::Ipxe).await?;
        ensure!(ipxe.address == own, "iPXE has another address than the firmware before it");
        let mut script = Url::parse(&ipxe.boot_file).context("iPXE's boot file")?;
        script.query_pairs_mut().append_pair("mac", &self.mac().to_string()).append_pair("uuid", &self.uuid());
        script.query_pairs_mut().append_pair("arch", "x86_64").append_pair("platform", "efi");
        let script = self.script(own, &script).await?;
        let file = |command: &str| -> Result<Url> {
            let line = script.lines().find(|line| line.starts_with(command));
            let mut words = line.with_context(|| format!("no {command} in the script:\n{script}"))?.split(' ');
            Ok(words.find(|word| word.starts_with("http:")).context("no address")?.parse()?)
        };
        self.plain("kernel", own, &file("kernel ")?).await?;
        let initrd = self.plain("initrd", own, &file("initrd ")?).await?;

        let stage = first_stage(&initrd)?;
        let tls = self.client(&stage.ca, None)?;
        let request = || Request { url: &stage.url, token: Some(&stage.token), body: None };
        let config = self.secure("ignition", own, &tls, request).await?;
        ensure!(hex::encode(Sha512::digest(&config)) == stage.digest, "the configuration has another digest");

        let agent = agent_config(&config)?;
        let tls = self.enroll(own, &agent).await?;
        let url = Url::parse(&agent.server)?.join("/agent/v1/task")?;
        let answer = self.secure("task", own, &tls, || Request { url: &url, token: None, body: None }).await?;
        let TaskAnswer { task, .. } = serde_json::from_slice(&answer)?;
        ensure!(matches!(task, Task::Install(_)), "told to {task:?}");
        self.report.add("whole_boot", begun.elapsed(), 0);
        Ok(if stays { Some(self.become_node(own, &agent, &tls).await?) } else { None })
    }

    /// What the installation comes to, for the service: the node's configuration is fetched, the disk is written, and the
    /// node enrolls with its own token.
    async fn become_node(&self, own: Ipv4Addr, live: &AgentConfig, tls: &Arc<rustls::ClientConfig>) -> Result<Node> {
        let server = Url::parse(&live.server)?;
        let url = server.join(&format!("/agent/v1/install-config?generation={}", live.generation))?;
        let config = self.secure("install_config", own, tls, || Request { url: &url, token: None, body: None }).await?;
        let event = ReportEvent::Installed { generation: live.generation };
        let report = serde_json::to_vec(&Told { id: Uuid::new_v4(), boot_id: "live".into(), event })?;
        let url = server.join("/agent/v1/report")?;
        let request = || Request { url: &url, token: None, body: Some(report.clone()) };
        self.secure("installed", own, tls, request).await?;
        let tls = self.enroll(own, &agent_config(&config)?).await?;
        Ok(Node { number: self.number, own, server, tls })
    }

    /// The script that boots something. One that makes the machine wait is asked for again after its sleep.
    async fn script(&self, own: Ipv4Addr, url: &Url) -> Result<String> {
        let mut script = String::new();
        for waited in 0..TRIES {
            if waited > 0 {
                self.report.add("told_to_wait", SCRIPT_SLEEP, 1);
                tokio::time::sleep(SCRIPT_SLEEP).await;
            }
            script = String::from_utf8(self.plain("script", own, url).await?)?;
            if script.lines().any(|line| line.starts_with("kernel ")) {
                break;
            }
        }
        Ok(script)
    }

    /// A certificate for the token.
    async fn enroll(&self, own: Ipv4Addr, agent: &AgentConfig) -> Result<Arc<rustls::ClientConfig>> {
        let server = Url::parse(&agent.server)?;
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let enroll = EnrollRequest {
            machine: agent.machine,
            token: agent.token.clone(),
            csr: params.serialize_request(&key)?.pem()?,
            facts: self.facts(own),
        };
        let (url, body) = (server.join("/agent/v1/enroll")?, serde_json::to_vec(&enroll)?);
        let request = || Request { url: &url, token: None, body: Some(body.clone()) };
        let answer = self.secure("enroll", own, &self.client(&agent.ca, None)?, request).await?;
        let bought: EnrollResponse = serde_json::from_slice(&answer)?;

        self.client(&bought.ca, Some((&bought.certificate, &key.serialize_pem())))
    }

    async fn lease(&self, name: &'static str, client: Client) -> Result<Lease> {
        let first = u32::from(self.number) << 16 | u32::from(client == Client::Ipxe) << 8;
        let ask = |attempt| -> Try<'_, Lease> { Box::pin(self.relay.lease(self.mac(), client, first + 2 * attempt)) };
        self.step(name, DHCP_LIMIT, ask).await
    }

    async fn plain(&self, name: &'static str, own: Ipv4Addr, url: &Url) -> Result<Vec<u8>> {
        let fetch =
            |_| -> Try<'_, Vec<u8>> { Box::pin(http::fetch(own, None, Request { url, token: None, body: None })) };
        self.step(name, FETCH_LIMIT, fetch).await
    }

    async fn secure<'a>(
        &'a self,
        name: &'static str,
        own: Ipv4Addr,
        tls: &Arc<rustls::ClientConfig>,
        request: impl Fn() -> Request<'a>,
    ) -> Result<Vec<u8>> {
        let fetch = |_| -> Try<'_, Vec<u8>> { Box::pin(http::fetch(own, Some(Arc::clone(tls)), request())) };
        self.step(name, FETCH_LIMIT, fetch).await
    }

    /// Tries until it is done, with a limit that doubles.
    async fn step<'a, T>(
        &self,
        name: &'static str,
        limit: Duration,
        mut attempt: impl FnMut(u32) -> Try<'a, T>,
    ) -> Result<T> {
        let begun = Instant::now();
        let mut last = None;
        for number in 0..TRIES {
            match tokio::time::timeout(limit * 2_u32.pow(number), attempt(number)).await {
                Ok(Ok(done)) => {
                    self.report.add(name, begun.elapsed(), number);
                    return Ok(done);
                }
                Ok(Err(error)) => {
                    last = Some(error);
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) => {}
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no answer")).context(name))
    }

    fn client(&self, ca: &str, identity: Option<(&str, &str)>) -> Result<Arc<rustls::ClientConfig>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.tls))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        Ok(Arc::new(match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
            }
        }))
    }

    fn uuid(&self) -> String {
        format!("5254000a-0000-4000-8000-{:012x}", u32::from(self.number) + 1)
    }

    fn facts(&self, own: Ipv4Addr) -> Facts {
        Facts {
            architecture: "x86_64".into(),
            firmware: Firmware::Uefi,
            uuid: Some(self.uuid()),
            cpu_model: "QEMU Virtual CPU version 2.5+".into(),
            cpus: 4,
            memory_bytes: 8 << 30,
            disks: vec![Disk { device: "/dev/vda".into(), size_bytes: 64 << 30, ..Disk::default() }],
            nics: vec![Nic { name: "eth0".into(), mac: self.mac(), up: true, addresses: vec![format!("{own}/16")] }],
            live: true,
            ..Facts::default()
        }
    }
}

/// Finds the overlay behind the initramfs and reads its one file.
fn first_stage(initrd: &[u8]) -> Result<FirstStage> {
    let name = b"config.ign\0";
    let at = initrd.windows(name.len()).rposition(|window| window == name).context("no overlay")?;
    // A cpio header has 110 bytes; the file's size is its seventh number of eight hex digits, behind the magic.
    let header = at.checked_sub(110).and_then(|start| initrd.get(start..at)).context("no cpio header")?;
    ensure!(header.starts_with(b"070701"), "no cpio archive");
    let size = usize::from_str_radix(std::str::from_utf8(&header[54..62])?, 16)?;
    let data = at - 110 + (110 + name.len()).next_multiple_of(4);
    let stage: Value = serde_json::from_slice(initrd.get(data..data + size).context("cut short")?)?;
    let merge = &stage["ignition"]["config"]["merge"][0];
    let text = |value: &Value| value.as_str().map(str::to_owned).context("something is missing in the first stage");
    let ca = text(&stage["ignition"]["security"]["tls"]["certificateAuthorities"][0]["source"])?;
    Ok(FirstStage {
        url: text(&merge["source"])?.parse()?,
        token: text(&merge["httpHeaders"][0]["value"])?.replace("Bearer ", ""),
        digest: text(&merge["verification"]["hash"])?.replace("sha512-", ""),
        ca: String::from_utf8(data_url(&ca)?)?,
    })
}

fn agent_config(config: &[u8]) -> Result<AgentConfig> {
    let config: Value = serde_json::from_slice(config)?;
    let files = config["storage"]["files"].as_array().context("no files in the configuration")?;
    let file = files.iter().find(|file| file["path"] == AGENT_CONFIG_PATH).context("no file for the agent")?;
    let source = file["contents"]["source"].as_str().context("the agent's file is empty")?;
    serde_json::from_slice(&data_url(source)?).context("the agent's file")
}

fn data_url(url: &str) -> Result<Vec<u8>> {
    let data = url.strip_prefix("data:;base64,").with_context(|| format!("not a data URL of base64: {url}"))?;
    Ok(base64::engine::general_purpose::STANDARD.decode(data)?)
}
