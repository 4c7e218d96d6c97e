//! Certificates and health of a cluster whose machines never come.

use nkd_api::cluster::ClusterCertificates;

use super::harness::{Place, text};

const FILE: &str = "apiVersion: nkd.io/v1alpha1\nkind: Cluster\nmetadata: {name: rack7}\nspec:\n  os: {profile: lab, image: lab-1}\n  kubernetes: {version: v1.20.2}\n  pools:\n  - {name: cp, role: control-plane, machines: [{mac: '52:54:00:0e:00:01', hostname: cp1, ip: 192.0.2.11/24}]}\n  - {name: w, role: worker, machines: [{mac: '52:54:00:0e:00:02', hostname: w1, ip: 192.0.2.12/24}]}\n";

#[tokio::test]
async fn the_services_own_authorities_are_shown_and_there_is_nothing_to_renew_before_a_node_has_joined() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let path = place.state().join("cluster.yaml");
    std::fs::write(&path, FILE).unwrap();
    place.ok(&["cluster", "apply", "-f", path.to_str().unwrap()]);

    let json = place.ok(&["cluster", "certs", "rack7", "-o", "json"]);
    let all: ClusterCertificates = serde_json::from_str(&json).unwrap();
    let names: Vec<&str> = all.certificates.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["ca", "etcd/ca", "front-proxy-ca"]);
    assert!(all.certificates.iter().all(|c| c.node.is_none() && c.days_left > 7000 && c.renewed_from.is_none()));
    let table = place.ok(&["cluster", "certs", "rack7"]);
    assert!(table.contains("(service)  etcd/ca") && table.contains("never"), "{table}");
    let yaml = place.ok(&["cluster", "certs", "rack7", "-o", "yaml"]);
    assert_eq!(serde_saphyr::from_str::<ClusterCertificates>(&yaml).unwrap(), all);

    for (words, said) in [
        (&["cluster", "certs", "renew", "rack7"][..], "no control plane has joined"),
        (&["cluster", "certs", "renew", "rack7", "--node", "cp1"], "cp1 has not joined"),
        (&["cluster", "certs", "renew", "rack7", "--node", "w1"], "the kubelet renews that by itself"),
        (&["cluster", "certs", "renew", "rack7", "--node", "x"], "no node x"),
        (&["cluster", "certs", "other"], "no cluster `other`"),
        (&["cluster", "certs"], "required"),
    ] {
        let out = place.cli(words);
        assert!(!out.status.success(), "{words:?}");
        assert!(text(&out.stderr).contains(said), "{words:?}: {}", text(&out.stderr));
    }
    assert!(place.ok(&["audit"]).contains("cluster.certs.renew"));

    let metrics = reqwest::get(place.metrics_url("/metrics")).await.unwrap().text().await.unwrap();
    for line in [
        "nkd_cluster_health{cluster=\"rack7\",state=\"unknown\"} 1",
        "nkd_cluster_health{cluster=\"rack7\",state=\"healthy\"} 0",
        "nkd_cluster_nodes{cluster=\"rack7\"} 2",
        "nkd_cluster_nodes_ready{cluster=\"rack7\"} 0",
    ] {
        assert!(metrics.lines().any(|seen| seen == line), "{line}:\n{metrics}");
    }
    let ends = all.certificates[1].not_after.unix_timestamp();
    let line = format!(
        "nkd_cluster_certificate_expiry_timestamp_seconds{{cluster=\"rack7\",certificate=\"etcd/ca\",node=\"\"}} {ends}"
    );
    assert!(metrics.lines().any(|seen| seen == line), "{line}:\n{metrics}");
}
