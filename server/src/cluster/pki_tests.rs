//! The authorities against openssl, and every reason to refuse an operator's own.
#![allow(clippy::disallowed_methods, reason = "runs openssl")]

use std::path::Path;
use std::process::Command;

use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

fn openssl(folder: &Path, words: &str) -> String {
    let out = Command::new("openssl").args(words.split_whitespace()).current_dir(folder).output().expect("openssl");
    assert!(out.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn inline(text: &str) -> Source {
    Source::Inline { inline: text.to_owned() }
}

fn given(certificate: &str, key: &str) -> Option<GivenPair> {
    Some(GivenPair { certificate: inline(certificate), key: inline(key) })
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}

fn made() -> ClusterPki {
    ClusterPki::create(&Certificates::default(), NOW).unwrap()
}

fn said(certificates: &Certificates) -> Vec<(String, String)> {
    problems(certificates, NOW).into_iter().map(|problem| (problem.path, problem.message)).collect()
}

#[track_caller]
fn says(certificates: &Certificates, path: &str, words: &str) {
    let said = said(certificates);
    assert!(said.iter().any(|(p, m)| p == path && m.contains(words)), "{path} {words}: {said:?}");
    assert!(matches!(ClusterPki::create(certificates, NOW), Err(PkiError::Invalid(_))));
}

#[test]
fn the_files_are_those_of_kubeadm_and_keys_are_private() {
    let files = made().control_plane_files();
    let seen: Vec<(&str, u32)> = files.iter().map(|file| (file.path.as_str(), file.mode)).collect();
    let want = [
        ("/etc/kubernetes/pki/ca.crt", 0o644),
        ("/etc/kubernetes/pki/ca.key", 0o600),
        ("/etc/kubernetes/pki/etcd/ca.crt", 0o644),
        ("/etc/kubernetes/pki/etcd/ca.key", 0o600),
        ("/etc/kubernetes/pki/front-proxy-ca.crt", 0o644),
        ("/etc/kubernetes/pki/front-proxy-ca.key", 0o600),
        ("/etc/kubernetes/pki/sa.pub", 0o644),
        ("/etc/kubernetes/pki/sa.key", 0o600),
    ];
    assert_eq!(seen, want);
    for file in &files {
        assert_eq!(file.mode == 0o600, file.contents.contains("PRIVATE KEY"), "{}", file.path);
    }
    assert!(!format!("{:?}", made()).contains("BEGIN"), "what is logged holds no key");
}

#[test]
fn openssl_agrees_with_authorities_hash_and_kubeconfig() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pki = made();
    for file in pki.control_plane_files() {
        std::fs::write(
            folder.join(file.path.trim_start_matches("/etc/kubernetes/pki/").replace('/', "-")),
            file.contents,
        )
        .unwrap();
    }
    for name in ["ca", "etcd-ca", "front-proxy-ca"] {
        openssl(folder, &format!("verify -x509_strict -check_ss_sig -CAfile {name}.crt {name}.crt"));
        let text = openssl(folder, &format!("x509 -in {name}.crt -noout -startdate -ext basicConstraints,keyUsage"));
        assert!(text.contains("2000") && text.contains("CA:TRUE") && text.contains("Certificate Sign"), "{text}");
    }
    assert_eq!(openssl(folder, "pkey -in sa.key -pubout"), read(folder, "sa.pub"));
    assert!(openssl(folder, "pkey -pubin -in sa.pub -noout -text").contains("2048 bit"));

    openssl(folder, "x509 -in ca.crt -pubkey -noout -out ca.pub");
    openssl(folder, "pkey -pubin -in ca.pub -outform der -out ca.spki");
    let digest = openssl(folder, "dgst -sha256 -r ca.spki");
    assert_eq!(pki.ca_hash().unwrap(), format!("sha256:{}", digest.split_whitespace().next().unwrap()));

    let access = Access {
        cluster: "rack7",
        endpoints: &endpoints(&["rack7-cp1 10.0.0.10:6443", "rack7-cp2 10.0.0.11:6443"]),
        current: 1,
        user: "kubernetes-admin",
        group: "system:masters",
        lifetime: Duration::days(3650),
    };
    let config: serde_json::Value = serde_saphyr::from_str(&pki.kubeconfig(&access, NOW).unwrap()).unwrap();
    let decoded = |value: &serde_json::Value| BASE64.decode(value.as_str().unwrap()).unwrap();
    let user = &config["users"][0]["user"];
    std::fs::write(folder.join("client.crt"), decoded(&user["client-certificate-data"])).unwrap();
    std::fs::write(folder.join("client.key"), decoded(&user["client-key-data"])).unwrap();
    openssl(folder, "verify -x509_strict -purpose sslclient -CAfile ca.crt client.crt");
    let subject = openssl(folder, "x509 -in client.crt -noout -subject -nameopt RFC2253");
    assert_eq!(subject.trim(), "subject=O=system:masters,CN=kubernetes-admin");
    openssl(folder, "x509 -in client.crt -pubkey -noout -out client.pub");
    assert_eq!(openssl(folder, "pkey -in client.key -pubout"), read(folder, "client.pub"));
    let cluster = &config["clusters"][0];
    assert_eq!(decoded(&cluster["cluster"]["certificate-authority-data"]), pki.ca_pem().as_bytes());
    assert_eq!(cluster["cluster"]["server"], "https://10.0.0.10:6443");
    assert_eq!(config["clusters"][1]["cluster"]["server"], "https://10.0.0.11:6443");
    assert_eq!(config["contexts"].as_array().unwrap().len(), 2);
    let context = &config["contexts"][1];
    assert_eq!(context["name"], config["current-context"]);
    assert_eq!(context["name"], "kubernetes-admin@rack7-cp2");
    assert_eq!(context["context"]["cluster"], config["clusters"][1]["name"]);
    assert_eq!(context["context"]["user"], config["users"][0]["name"]);
}

/// `name host:port` each.
fn endpoints(all: &[&str]) -> Vec<NamedEndpoint> {
    let endpoint = |text: &&str| {
        let (name, address) = text.split_once(' ').unwrap();
        NamedEndpoint { name: name.into(), address: address.into() }
    };
    all.iter().map(endpoint).collect()
}

#[test]
fn a_kubeconfig_ends_with_its_authority_and_a_dead_authority_signs_nothing() {
    let pki = made();
    let end = pki.expiries(NOW).unwrap()[0].not_after;
    let endpoints = endpoints(&["c h:6443"]);
    let lifetime = Duration::days(100 * 365);
    let access = Access { cluster: "c", endpoints: &endpoints, current: 0, user: "u", group: "g", lifetime };
    let config: serde_json::Value = serde_saphyr::from_str(&pki.kubeconfig(&access, NOW).unwrap()).unwrap();
    let certificate = BASE64.decode(config["users"][0]["user"]["client-certificate-data"].as_str().unwrap()).unwrap();
    let ends = with_first(std::str::from_utf8(&certificate).unwrap(), |c| c.validity().not_after.to_datetime());
    assert_eq!(ends, Some(end));
    assert!(matches!(pki.kubeconfig(&access, end), Err(PkiError::Ended(at)) if at == end));
    let later = end + Duration::days(1);
    assert!(pki.expiries(later).unwrap().iter().all(|expiry| expiry.left == Duration::days(-1)));
}

#[test]
fn a_document_comes_back_and_half_a_one_is_refused() {
    let pki = made();
    let document = pki.to_document().unwrap();
    let back = ClusterPki::from_document(&document).unwrap();
    assert!(back.control_plane_files() == pki.control_plane_files());
    let mut half: serde_json::Value = serde_json::from_slice(&document).unwrap();
    half["etcd"]["certificate"] = "-----BEGIN CERTIFICATE-----".into();
    let broken = serde_json::to_vec(&half).unwrap();
    assert!(matches!(ClusterPki::from_document(&broken), Err(PkiError::Stored("etcd/ca"))));
    half.as_object_mut().unwrap().remove("etcd");
    assert!(matches!(ClusterPki::from_document(&serde_json::to_vec(&half).unwrap()), Err(PkiError::Document(_))));
}

/// openssl makes what operators have: RSA and ECDSA, in every form of PEM that kubeadm reads.
#[test]
fn an_operators_authorities_are_taken_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let rsa = "req -x509 -newkey rsa:2048 -nodes -days 36500 -subj /O=Example/CN=root -keyout rsa8.key -out rsa.crt";
    openssl(folder, rsa);
    openssl(folder, "rsa -traditional -in rsa8.key -out rsa1.key");
    openssl(folder, "ecparam -name prime256v1 -genkey -out ec.key");
    openssl(folder, "req -x509 -new -key ec.key -days 36500 -subj /CN=etcd -out ec.crt");
    openssl(folder, "genrsa -traditional -out sa.key 2048");
    openssl(folder, "rsa -in sa.key -pubout -out sa.pub");
    assert!(read(folder, "rsa1.key").contains("BEGIN RSA PRIVATE KEY"));
    assert!(read(folder, "ec.key").contains("BEGIN EC PARAMETERS"));
    let certificates = Certificates {
        cluster: given(&read(folder, "rsa.crt"), &read(folder, "rsa1.key")),
        etcd: given(&read(folder, "ec.crt"), &read(folder, "ec.key")),
        front_proxy: None,
        service_account: given(&read(folder, "sa.pub"), &read(folder, "sa.key")),
    };
    let now = OffsetDateTime::now_utc() + Duration::hours(1);
    assert_eq!(problems(&certificates, now), []);
    let pki = ClusterPki::create(&certificates, now).unwrap();
    let files = pki.control_plane_files();
    for (path, name) in [("ca.crt", "rsa.crt"), ("ca.key", "rsa1.key"), ("etcd/ca.key", "ec.key"), ("sa.key", "sa.key")]
    {
        let file = files.iter().find(|file| file.path.ends_with(&format!("pki/{path}"))).unwrap();
        assert_eq!(file.contents, read(folder, name), "{path}");
    }
    let endpoints = endpoints(&["c h:6443"]);
    let lifetime = Duration::days(30);
    let access = Access { cluster: "c", endpoints: &endpoints, current: 0, user: "u", group: "g", lifetime };
    let config: serde_json::Value = serde_saphyr::from_str(&pki.kubeconfig(&access, now).unwrap()).unwrap();
    let certificate = BASE64.decode(config["users"][0]["user"]["client-certificate-data"].as_str().unwrap()).unwrap();
    std::fs::write(folder.join("client.crt"), certificate).unwrap();
    openssl(folder, "verify -purpose sslclient -CAfile rsa.crt client.crt");
}

#[test]
fn what_cannot_be_used_is_refused_with_its_path() {
    let (one, two) = (made(), made());
    let pair = |pair: &Pair| given(&pair.certificate, &pair.key);
    let cluster = |cluster| Certificates { cluster, ..Certificates::default() };
    let certificate = "spec.certificates.cluster.certificate";
    let key = "spec.certificates.cluster.key";

    says(&cluster(given(&one.cluster.certificate, &two.cluster.key)), key, "does not belong");
    says(&cluster(given("nonsense", &one.cluster.key)), certificate, "is not a certificate");
    says(&cluster(given(&one.cluster.certificate, "nonsense")), key, "is not a private key");
    let path = Some(GivenPair { certificate: Source::Location("ca.crt".into()), key: inline(&one.cluster.key) });
    says(&cluster(path), certificate, "is a path");

    let leaf_key = KeyPair::generate().unwrap();
    let leaf = params("leaf", NOW + Duration::days(9)).unwrap().self_signed(&leaf_key).unwrap().pem();
    says(&cluster(given(&leaf, &leaf_key.serialize_pem())), certificate, "is not that of a certificate authority");

    let old = new_authority("old", NOW - CA_LIFE).unwrap();
    says(&cluster(pair(&old)), certificate, "ended on 2026-03-01T12:00:00Z");
    let ed_key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut ed = params("ed", NOW + CA_LIFE).unwrap();
    ed.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ed = ed.self_signed(&ed_key).unwrap().pem();
    says(&cluster(given(&ed, &ed_key.serialize_pem())), key, "neither ECDSA");

    let shared =
        Certificates { cluster: pair(&one.cluster), front_proxy: pair(&one.cluster), ..Certificates::default() };
    says(&shared, "spec.certificates.frontProxy.key", "is the key of `cluster` too");

    let account = |service_account| Certificates { service_account, ..Certificates::default() };
    let account_key = "spec.certificates.serviceAccount.key";
    says(&account(given(&one.service_account.certificate, &two.service_account.key)), account_key, "does not belong");
    says(&account(given(&leaf_key.public_key_pem(), &leaf_key.serialize_pem())), account_key, "is not RSA");
    let certificate_for_key = account(given(&leaf, &leaf_key.serialize_pem()));
    says(&certificate_for_key, "spec.certificates.serviceAccount.certificate", "is not a public key");
}

/// rcgen keeps one value an attribute: an authority below two `DC` would sign what no chain leads back to.
#[test]
fn a_subject_that_cannot_be_written_back_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    openssl(
        folder,
        "req -x509 -newkey rsa:2048 -nodes -days 36500 -subj /DC=org/DC=example/CN=root -keyout ca.key -out ca.crt",
    );
    let certificates =
        Certificates { cluster: given(&read(folder, "ca.crt"), &read(folder, "ca.key")), ..Certificates::default() };
    let problems = problems(&certificates, OffsetDateTime::now_utc() + Duration::hours(1));
    assert!(problems.iter().any(|p| p.message.contains("cannot sign for")), "{problems:?}");
    // The service signs nothing with etcd's.
    let etcd = Certificates { etcd: certificates.cluster, ..Certificates::default() };
    assert_eq!(super::problems(&etcd, OffsetDateTime::now_utc() + Duration::hours(1)), []);
}

#[test]
fn a_client_of_etcd_is_signed_by_etcds_authority_and_by_no_other() {
    let (dir, pki) = (tempfile::tempdir().unwrap(), made());
    let client = pki.etcd_client("nkd", Duration::hours(1), NOW).unwrap();
    for (name, text) in [("etcd.crt", client.ca.as_str()), ("ca.crt", pki.ca_pem()), ("c.pem", &client.chain_and_key)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let at = NOW.unix_timestamp() + 60;
    openssl(dir.path(), &format!("verify -x509_strict -purpose sslclient -attime {at} -CAfile etcd.crt c.pem"));
    let shown = openssl(dir.path(), "x509 -in c.pem -noout -subject -enddate -ext extendedKeyUsage");
    for wanted in ["CN = nkd", "Mar  1 13:00:00 2026", "TLS Web Client Authentication"] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
    let words = format!("verify -attime {at} -CAfile ca.crt c.pem");
    let other = Command::new("openssl").args(words.split_whitespace()).current_dir(dir.path()).output().unwrap();
    assert!(!other.status.success(), "the cluster's authority has not signed it");
    let ended = NOW + Duration::days(365 * 30);
    assert!(matches!(pki.etcd_client("nkd", Duration::hours(1), ended), Err(PkiError::Ended(_))));
}
