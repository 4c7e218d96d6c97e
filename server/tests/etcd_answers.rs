//! A real etcd (3.4) with the certificates of our authorities answers the service's client.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that runs the real program")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nkd_api::cluster::Certificates;
use nkd_server::cluster::etcd::{self, CLIENT_PORT, Etcd, EtcdError};
use nkd_server::cluster::peer::{self, EtcdWord};
use nkd_server::cluster::pki::ClusterPki;
use nkd_server::cluster::quorum::{Why, may_remove};
use tempfile::TempDir;
use time::OffsetDateTime;

/// How long members may take to find each other.
const LIMIT: Duration = Duration::from_secs(60);

fn program() -> PathBuf {
    let folder = std::env::var_os("NKD_KUBERNETES").map(PathBuf::from);
    let program = folder.map(|folder| folder.join("sys/usr/bin/etcd")).filter(|program| program.is_file());
    program.expect("NKD_KUBERNETES has no etcd: set it to what `cargo xtask image kubernetes` makes")
}

struct Members {
    folder: TempDir,
    running: Vec<Option<Child>>,
}

impl Drop for Members {
    fn drop(&mut self) {
        (0..self.running.len()).for_each(|number| self.kill(number));
    }
}

/// Every run has loopback addresses of its own, because etcd's ports are always the same.
fn address(number: usize) -> IpAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + high % 64, low, u8::try_from(number + 1).unwrap()).into()
}

fn endpoint(number: usize) -> SocketAddr {
    SocketAddr::new(address(number), CLIENT_PORT)
}

fn openssl(folder: &Path, words: &str) {
    let out = Command::new("openssl").args(words.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(out.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Members {
    fn start(pki: &ClusterPki, count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in pki.control_plane_files() {
            if let Some(name) = file.path.strip_prefix("/etc/kubernetes/pki/etcd/") {
                std::fs::write(folder.path().join(name), file.contents).unwrap();
            }
        }
        let peer = |number| format!("cp{number}=https://{}:2380", address(number));
        let cluster: Vec<String> = (0..count).map(peer).collect();
        let mut members = Self { folder, running: Vec::new() };
        for number in 0..count {
            let child = members.spawn(number, &cluster.join(","));
            members.running.push(Some(child));
        }
        members
    }

    /// As kubeadm's static pod has it; one certificate stands for `server` and `peer`, which have the same usages.
    fn spawn(&self, number: usize, cluster: &str) -> Child {
        let (folder, ip) = (self.folder.path(), address(number));
        // Peers check each other's address against the certificate, and all of them come from 127.0.0.1 here.
        let extensions = format!("subjectAltName=IP:{ip},IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n");
        std::fs::write(folder.join(format!("{number}.ext")), extensions).unwrap();
        openssl(
            folder,
            &format!("req -new -newkey rsa:2048 -nodes -subj /CN=cp{number} -keyout {number}.key -out {number}.csr"),
        );
        openssl(
            folder,
            &format!(
                "x509 -req -in {number}.csr -CA ca.crt -CAkey ca.key -set_serial {number}7 -days 1 \
                 -extfile {number}.ext -out {number}.crt"
            ),
        );
        let log = std::fs::File::create(folder.join(format!("{number}.log"))).unwrap();
        let mut command = Command::new(program());
        command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let words = format!(
            "--name=cp{number} --data-dir=data{number} --client-cert-auth=true --peer-client-cert-auth=true \
             --cert-file={number}.crt --key-file={number}.key --trusted-ca-file=ca.crt \
             --peer-cert-file={number}.crt --peer-key-file={number}.key --peer-trusted-ca-file=ca.crt \
             --listen-client-urls=https://{ip}:{CLIENT_PORT} --advertise-client-urls=https://{ip}:{CLIENT_PORT} \
             --listen-peer-urls=https://{ip}:2380 --initial-advertise-peer-urls=https://{ip}:2380 \
             --initial-cluster={cluster} --initial-cluster-state=new"
        );
        command.args(words.split_whitespace()).spawn().unwrap()
    }

    /// Tells this member that another one comes, as kubeadm does; true when it takes that.
    fn add(&self, asked: usize, number: usize) -> bool {
        let certificate = format!("{asked}.crt");
        let status = Command::new("curl")
            .current_dir(self.folder.path())
            .args([
                "-sSf",
                "-o",
                "/dev/null",
                "--cacert",
                "ca.crt",
                "--cert",
                &certificate,
                "--key",
                &format!("{asked}.key"),
            ])
            .args(["-d", &format!("{{\"peerURLs\": [\"https://{}:2380\"]}}", address(number))])
            .arg(format!("https://{}/v3/cluster/member/add", endpoint(asked)))
            .status()
            .unwrap();
        status.success()
    }

    /// etcd takes nobody until its members have seen each other for five seconds.
    async fn expect_added(&self, asked: usize, number: usize) {
        let end = Instant::now() + LIMIT;
        while !self.add(asked, number) {
            assert!(Instant::now() < end, "{}", self.logs());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits until an etcd says what is wanted.
    async fn expect_word<F: Future<Output = Result<EtcdWord, EtcdError>>>(
        &self,
        ask: &impl Fn() -> F,
        wanted: impl Fn(&EtcdWord) -> bool,
    ) {
        let end = Instant::now() + LIMIT;
        loop {
            let word = ask().await;
            if word.as_ref().is_ok_and(&wanted) {
                return;
            }
            assert!(Instant::now() < end, "{word:?}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.running[number].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn logs(&self) -> String {
        let log = |number| std::fs::read_to_string(self.folder.path().join(format!("{number}.log"))).unwrap();
        (0..self.running.len()).map(log).collect()
    }

    /// Waits until so many of them are healthy, and no more.
    async fn expect_healthy(&self, client: &Etcd, wanted: usize) {
        let end = Instant::now() + LIMIT;
        loop {
            let seen = client.health().await;
            if seen.as_ref().is_ok_and(|all| all.iter().filter(|(_, health)| health.is_ok()).count() == wanted) {
                return;
            }
            assert!(Instant::now() < end, "{wanted} healthy members are wanted: {seen:?}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

fn authorities() -> ClusterPki {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ClusterPki::create(&Certificates::default(), OffsetDateTime::now_utc()).unwrap()
}

fn client(pki: &ClusterPki, numbers: &[usize]) -> Etcd {
    let endpoints: Vec<SocketAddr> = numbers.iter().map(|number| endpoint(*number)).collect();
    Etcd::connect(pki, &endpoints, OffsetDateTime::now_utc()).unwrap()
}

#[tokio::test]
#[ignore = "needs NKD_KUBERNETES"]
async fn members_are_listed_judged_and_removed_as_long_as_the_majority_holds() {
    let pki = authorities();
    let mut members = Members::start(&pki, 3);
    let etcd = client(&pki, &[0, 1, 2]);
    members.expect_healthy(&etcd, 3).await;
    let mut all = etcd.members().await.unwrap();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    for (number, member) in all.iter().enumerate() {
        assert_eq!(member.name, format!("cp{number}"));
        assert_eq!(member.peer_urls, [format!("https://{}:2380", address(number))]);
        assert_eq!(member.client_urls, [format!("https://{}", endpoint(number))]);
        assert!(!member.learner);
    }

    // An authority that is not theirs: neither side takes the other for what it says.
    let stranger = client(&authorities(), &[0]);
    assert!(matches!(stranger.members().await, Err(EtcdError::Unanswered { .. })));

    // The first endpoint is dead: the others are asked, and the dead member may go.
    members.kill(0);
    members.expect_healthy(&etcd, 2).await;
    assert!(etcd.healthy(&all[0]).await.unwrap_err().contains("it does not answer at"));
    let seen = etcd::for_quorum(&etcd.health().await.unwrap());
    assert_eq!(may_remove(&seen, all[0].id), Ok(()));
    assert!(matches!(may_remove(&seen, all[1].id), Err(Why::WouldLose { healthy: 1, voters: 2, .. })));
    etcd.remove(all[0].id).await.unwrap();
    etcd.remove(all[0].id).await.expect("it is gone, as was asked");
    let mut left: Vec<String> = etcd.members().await.unwrap().into_iter().map(|m| m.name).collect();
    left.sort();
    assert_eq!(left, ["cp1", "cp2"]);
    members.expect_healthy(&etcd, 2).await;

    // One of two: no leader, and nothing can be removed any more.
    members.kill(1);
    members.expect_healthy(&etcd, 0).await;
    assert!(etcd.healthy(&all[2]).await.unwrap_err().contains("no leader"));
    let seen = etcd::for_quorum(&etcd.health().await.unwrap());
    assert!(matches!(may_remove(&seen, all[1].id), Err(Why::NoQuorum { .. })));
    let refused = etcd.remove(all[1].id).await.unwrap_err();
    assert!(matches!(refused, EtcdError::Unanswered { .. } | EtcdError::Refused { .. }), "{refused}");
}

#[tokio::test]
#[ignore = "needs NKD_KUBERNETES"]
async fn an_etcd_that_waits_for_one_that_never_started_says_so_also_when_it_was_started_again() {
    let pki = authorities();
    let mut members = Members::start(&pki, 1);
    let etcd = client(&pki, &[0]);
    members.expect_healthy(&etcd, 1).await;
    let ask = || peer::word(&pki, address(0), OffsetDateTime::now_utc());
    let word = ask().await.unwrap();
    assert!(word.has_leader && word.members.len() == 1 && word.members[0].is_of("cp0", None), "{word:?}");

    members.expect_added(0, 1).await;
    let names = |word: &EtcdWord| word.members.iter().map(|m| m.name.clone()).collect::<BTreeSet<_>>();
    let wanted = BTreeSet::from([String::new(), "cp0".to_owned()]);
    members.expect_word(&ask, |word| !word.has_leader && names(word) == wanted).await;
    // The kubelet does this after a while, and so does a power cut: no client is answered any more.
    members.kill(0);
    members.running[0] = Some(members.spawn(0, &format!("cp0=https://{}:2380", address(0))));
    members.expect_word(&ask, |word| !word.has_leader && names(word) == wanted).await;
    assert!(matches!(etcd.members().await, Err(EtcdError::Unanswered { .. })));
    let word = ask().await.unwrap();
    let other = word.members.iter().find(|member| member.never_started()).unwrap();
    assert!(other.is_of("cp1", Some(address(1))) && !other.is_of("cp0", Some(address(0))), "{other:?}");
    let strangers = authorities();
    assert!(peer::word(&strangers, address(0), OffsetDateTime::now_utc()).await.is_err());
}

#[tokio::test]
#[ignore = "needs NKD_KUBERNETES"]
async fn one_that_never_started_is_found_and_removed_and_may_come_again() {
    let pki = authorities();
    let members = Members::start(&pki, 2);
    let etcd = client(&pki, &[0, 1]);
    members.expect_healthy(&etcd, 2).await;
    members.expect_added(0, 2).await;
    assert!(!members.add(0, 2), "a second try ends here, unless the first one's member is removed");
    let all = etcd.health().await.unwrap();
    let (left, health) = all.iter().find(|(m, _)| m.is_of("cp2", Some(address(2)))).unwrap();
    assert!(left.never_started() && health.as_ref().unwrap_err().contains("not started"), "{left:?}");
    assert_eq!(may_remove(&etcd::for_quorum(&all), left.id), Ok(()));
    etcd.remove(left.id).await.unwrap();
    members.expect_healthy(&etcd, 2).await;
    assert_eq!(etcd.members().await.unwrap().len(), 2);
    members.expect_added(0, 2).await;
}

#[tokio::test]
#[ignore = "needs NKD_KUBERNETES"]
async fn etcd_itself_refuses_to_lose_its_last_member() {
    let pki = authorities();
    let members = Members::start(&pki, 1);
    let etcd = client(&pki, &[0]);
    members.expect_healthy(&etcd, 1).await;
    let seen = etcd::for_quorum(&etcd.health().await.unwrap());
    assert_eq!(may_remove(&seen, seen[0].id), Err(Why::Last("cp0".into())));
    assert!(matches!(etcd.remove(seen[0].id).await, Err(EtcdError::Refused { .. })));
}
