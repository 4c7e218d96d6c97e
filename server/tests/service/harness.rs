//! A place for a service, the running service, and its clients.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use nkd_api::channel::Channel;
use nkd_api::upgrade::Upgrade;
use nkd_server::store::{Store, StoreError};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

/// Longer than anything takes here; a test that needs it fails.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);
/// Every service has an address of its own in 127/8, so ports never meet. They lie below the ephemeral ports.
pub const BOOT: u16 = 28080;
pub const API: u16 = 28443;
pub const METRICS: u16 = 29090;
pub const TFTP: u16 = 28069;

static PLACES: AtomicU32 = AtomicU32::new(1);
static PROVIDER: Once = Once::new();

/// Both sides of TLS use one provider.
pub fn provider() {
    PROVIDER.call_once(|| rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap());
}

/// A folder and an address for one service, which may be started there several times.
pub struct Place {
    pub dir: TempDir,
    pub ip: String,
    /// Further settings, `name=value`.
    pub settings: Vec<String>,
    /// The first token, once it was read: using it deletes its file.
    token: OnceLock<String>,
}

impl Place {
    pub fn new() -> Self {
        provider();
        let (pid, n) = (std::process::id(), PLACES.fetch_add(1, Ordering::Relaxed));
        let ip = format!("127.{}.{}.{}", 64 + ((pid >> 8) & 63), pid & 255, n % 250 + 1);
        Self { dir: TempDir::new().unwrap(), ip, settings: Vec::new(), token: OnceLock::new() }
    }

    pub fn with(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    pub fn boot_url(&self, path: &str) -> String {
        format!("http://{}:{BOOT}{path}", self.ip)
    }

    pub fn api_url(&self, path: &str) -> String {
        format!("https://{}:{API}{path}", self.ip)
    }

    pub fn metrics_url(&self, path: &str) -> String {
        format!("http://{}:{METRICS}{path}", self.ip)
    }

    pub fn ca(&self) -> String {
        std::fs::read_to_string(self.state().join("ca.pem")).unwrap()
    }

    pub fn admin_token(&self) -> String {
        self.token.get_or_init(|| std::fs::read_to_string(self.first_token_file()).unwrap()).clone()
    }

    pub fn first_token_file(&self) -> PathBuf {
        self.state().join("first-admin-token")
    }

    /// The program without the environment's settings.
    pub fn nkd(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nkd"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NKD_") {
                command.env_remove(name);
            }
        }
        command.env("NKD_CONFIG", self.dir.path().join("cli.json")).env("HOME", self.dir.path());
        command.stdin(Stdio::null());
        command
    }

    /// `nkd serve` with this place's settings.
    pub fn serve(&self) -> Command {
        let mut command = self.nkd();
        command.arg("serve").arg("--config").arg(self.settings_file()).arg("--state-dir").arg(self.state());
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        command
    }

    pub fn settings_file(&self) -> PathBuf {
        let file = self.dir.path().join("nkd.toml");
        let ip = &self.ip;
        let text = format!(
            "[http]\nboot_listen = \"{ip}:{BOOT}\"\napi_listen = \"{ip}:{API}\"\nmetrics_listen = \"{ip}:{METRICS}\"\nnames = [\"{ip}\"]\n[tftp]\nlisten = \"{ip}:{TFTP}\"\n"
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Starts the service and waits until it is ready.
    pub async fn start(&self) -> Running {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let child = self.serve().stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut running = Running { child };
        let http = reqwest::Client::new();
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(answer) = http.get(self.metrics_url("/readyz")).send().await {
                assert_eq!(answer.status(), StatusCode::OK);
                return running;
            }
            if let Some(status) = running.child.try_wait().unwrap() {
                panic!("the service ended with {status}:\n{}", self.log_text());
            }
            assert!(Instant::now() < end, "the service did not become ready:\n{}", self.log_text());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Runs a command of the command line as admin.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.cli_as(&self.admin_token(), args)
    }

    pub fn cli_as(&self, token: &str, args: &[&str]) -> Output {
        self.client(token).args(args).output().unwrap()
    }

    /// The command line, pointed at this service.
    pub fn client(&self, token: &str) -> Command {
        let mut command = self.nkd();
        command.env("NKD_SERVER", self.api_url("")).env("NKD_TOKEN", token);
        command.env("NKD_CA", self.state().join("ca.pem"));
        command
    }

    /// Runs a command as admin that must succeed; gives its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.cli(args);
        assert!(out.status.success(), "nkd {args:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    pub fn admin(&self) -> Api {
        self.user(&self.admin_token())
    }

    pub fn user(&self, token: &str) -> Api {
        Api { http: self.https().build().unwrap(), base: self.api_url(""), token: token.to_owned() }
    }

    /// An HTTPS client that trusts this service's CA only.
    pub fn https(&self) -> reqwest::ClientBuilder {
        let ca = reqwest::Certificate::from_pem(self.ca().as_bytes()).unwrap();
        reqwest::Client::builder().tls_certs_only([ca]).timeout(PATIENCE)
    }

    /// Imports a small image named `lab-1`.
    pub async fn import(&self) -> Value {
        let folder = self.dir.path().join("image");
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in image_files() {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        let order = json!({"source": folder, "profile": "lab", "name": "lab-1", "version": null, "architecture": null, "key": null, "replace": true});
        let (status, body) = self.admin().text(Method::POST, "/api/v1/images", Some(&order)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let last: Value = serde_json::from_str(body.lines().last().unwrap()).unwrap();
        assert_eq!(last["kind"], "done", "{body}");
        last["image"].clone()
    }
}

/// The files of the image; the initramfs needs padding before an overlay.
pub fn image_files() -> [(&'static str, Vec<u8>); 4] {
    let bytes = |seed: usize, length: usize| (0..length).map(|i| (i * 7 + seed + (i >> 8)) as u8).collect();
    [
        ("lab-1-live-kernel-x86_64", bytes(1, 3000)),
        ("lab-1-live-initramfs.x86_64.img", bytes(2, 5001)),
        ("lab-1-live-rootfs.x86_64.img", bytes(3, 7000)),
        ("lab-1-metal.x86_64.raw", bytes(4, 9000)),
    ]
}

/// The running service; killed when dropped.
pub struct Running {
    pub child: Child,
}

impl Running {
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }

    /// `kill -9`, as a power cut.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a program.
pub fn ended(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "the program does not end");
        std::thread::sleep(LOOK);
    }
}

/// Waits until something is so.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// A user of the REST API.
#[derive(Clone)]
pub struct Api {
    pub http: reqwest::Client,
    base: String,
    token: String,
}

impl Api {
    pub async fn text(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, String) {
        self.attempt(method, path, body).await.unwrap()
    }

    /// As [`Self::text`], for a service that may be gone.
    pub async fn attempt(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, String), reqwest::Error> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        Ok((answer.status(), answer.text().await?))
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let (status, text) = self.text(method, path, body).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    /// A change that must succeed.
    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let (status, value) = self.call(Method::POST, path, Some(body)).await;
        assert!(status.is_success(), "{path}: {status} {value}");
        value
    }

    /// A declared machine with the image assigned.
    pub async fn declare(&self, name: &str, mac: &str) -> Value {
        let order = json!({"name": name, "identity": {"macs": [mac]}, "assignment": {"image": "lab-1"}});
        self.post("/api/v1/machines", &order).await
    }

    pub async fn machine(&self, name: &str) -> Value {
        self.get(&format!("/api/v1/machines/{name}")).await
    }

    /// The kinds of a machine's events.
    pub async fn kinds(&self, name: &str) -> Vec<String> {
        let events = self.get(&format!("/api/v1/machines/{name}/events?limit=1000")).await;
        events.as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap().to_owned()).collect()
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// True when a file exists and is private.
pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o7777
}

/// Begins an upgrade to a release of the channel `stable`.
pub async fn begin(store: &Store, cluster: Uuid, upgrade: &Upgrade) -> Result<(), StoreError> {
    let (name, profile, architecture) = ("stable".to_owned(), "lab".to_owned(), "x86_64".to_owned());
    if store.channel(&name).await?.is_none() {
        store.save_channel(&Channel { name: name.clone(), profile, architecture, releases: Vec::new() }, 0).await?;
    }
    let mut tries = 0;
    loop {
        let revision = store.channel(&name).await?.map_or(0, |(_, revision)| revision);
        let members = store.cluster(cluster).await?.map_or(0, |(_, revision)| revision);
        match store.begin_upgrade((cluster, members), upgrade, (&name, revision), |_| true).await {
            // The service may be writing into the history of the cluster in this moment: it would look again, too.
            Err(StoreError::Stale) if tries < 20 => tries += 1,
            begun => return begun,
        }
    }
}
