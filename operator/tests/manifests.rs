//! The manifests in `deploy/`: the resource definitions are those that the types give, and the deployment has no more rights
//! than the program uses. `NKD_BLESS=1` writes the definitions anew.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, which reads and writes files")]

use std::path::PathBuf;

use kube_core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use nkd_api::update::{
    GROUP, KIND, PLURAL, SHORT_NAME, UPSTREAM_GROUP, UpdateSpec, UpdateStatus, UpstreamSpec, VERSION,
};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

const HEAD: &str =
    "# Made from the types in api/src/update.rs: `NKD_BLESS=1 cargo test -p nkd-operator --test manifests`.\n";

fn deploy(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn documents(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(deploy(name)).unwrap();
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// A schema as the API server takes it.
fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let settings = settings.with_transform(StructuralSchemaRewriter).with_transform(OptionalEnum);
    let settings = settings.with_transform(OptionalIntOrString);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    plain(&mut schema);
    schema.as_object_mut().unwrap().remove("title");
    schema
}

/// What a resource has is what its owner wrote: defaults are the operator's. Formats of numbers are unknown there.
fn plain(schema: &mut Value) {
    if let Value::Object(object) = schema {
        if object.contains_key("type") || object.contains_key("x-kubernetes-int-or-string") {
            object.remove("default");
            object.retain(|key, value| key != "format" || value == "int32" || value == "int64");
        }
        object.values_mut().for_each(plain);
    }
}

fn definition(group: &str, scope: &str, short: &str, spec: Value, columns: &[(&str, &str, &str)]) -> Value {
    let column = |(name, kind, path): &(&str, &str, &str)| json!({"name": name, "type": kind, "jsonPath": path});
    let mut columns: Vec<Value> = columns.iter().map(column).collect();
    for shown in [
        ("Phase", "string", ".status.phase"),
        ("Done", "integer", ".status.counts.done"),
        ("Total", "integer", ".status.counts.total"),
        ("Failed", "integer", ".status.counts.failed"),
        ("Why", "string", ".status.conditions[?(@.type==\"Progressing\")].message"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ] {
        columns.push(column(&shown));
    }
    let schema = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": spec, "status": schema::<UpdateStatus>()},
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{PLURAL}.{group}")},
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"kind": KIND, "listKind": "UpdateList", "plural": PLURAL, "singular": "update", "shortNames": [short]},
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

fn definitions() -> [Value; 2] {
    let release = [("Release", "string", ".spec.release.name")];
    let upstream = [("Version", "string", ".spec.kubeVersion")];
    [
        definition(GROUP, "Cluster", SHORT_NAME, schema::<UpdateSpec>(), &release),
        definition(UPSTREAM_GROUP, "Namespaced", "hkupdate", schema::<UpstreamSpec>(), &upstream),
    ]
}

#[test]
fn the_resource_definitions_are_those_of_the_types() {
    if std::env::var_os("NKD_BLESS").is_some() {
        let text = definitions().map(|definition| serde_saphyr::to_string(&definition).unwrap()).join("---\n");
        std::fs::write(deploy("crds.yaml"), format!("{HEAD}{text}")).unwrap();
    }
    assert_eq!(documents("crds.yaml"), definitions());
}

/// What the API server asks of a structural schema.
fn structural(schema: &Value, place: &str) {
    for word in ["$ref", "oneOf", "anyOf", "allOf", "const", "$schema", "definitions", "$defs"] {
        assert!(schema.get(word).is_none(), "{place} has {word}");
    }
    let int_or_string = schema["x-kubernetes-int-or-string"] == true;
    assert!(schema["type"].is_string() || int_or_string, "{place} has no type: {schema}");
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        structural(below, &format!("{place}.{name}"));
    }
    for word in ["items", "additionalProperties"] {
        if schema[word].is_object() {
            structural(&schema[word], &format!("{place}.{word}"));
        }
    }
}

#[test]
fn the_schemas_are_structural() {
    for definition in definitions() {
        structural(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "schema");
    }
    let upstream = schema::<UpstreamSpec>();
    let fields: Vec<&String> = upstream["properties"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["evictPodForce", "kubeVersion", "maxUnavailable", "osImageURL"]);
}

#[test]
fn the_deployment_may_do_what_it_does_and_no_more() {
    let all = documents("housekeeper.yaml");
    let of = |kind: &str| all.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>();
    for role in of("ClusterRole").into_iter().chain(of("Role")) {
        for rule in role["rules"].as_array().unwrap() {
            assert!(!rule.to_string().contains('*'), "{rule}");
            assert!(!rule["resources"].to_string().contains("secrets"), "{rule}");
        }
    }
    let [deployment] = of("Deployment")[..] else { panic!("one deployment") };
    assert_eq!(deployment["spec"]["replicas"], 2);
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], format!("nkd.io/housekeeper:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    // The operator starts without what is told to registries, and reads it where it is mounted.
    let volumes = &pod["volumes"];
    assert_eq!(volumes[0]["configMap"], json!({"name": "housekeeper-registries", "optional": true}));
    assert_eq!(volumes[1]["secret"], json!({"secretName": "housekeeper-registries", "optional": true}));
    for (index, (variable, below)) in
        [("NKD_REGISTRY_CAS", ""), ("NKD_REGISTRY_CREDENTIALS", "/.dockerconfigjson")].into_iter().enumerate()
    {
        let mount = &container["volumeMounts"][index];
        assert_eq!((&mount["name"], &mount["readOnly"]), (&volumes[index]["name"], &json!(true)));
        let path = format!("{}{below}", mount["mountPath"].as_str().unwrap());
        let set = |one: &&Value| one["name"] == variable;
        assert_eq!(container["env"].as_array().unwrap().iter().find(set).unwrap()["value"], path);
    }
    // Where the only control plane is closed for its upgrade, a lost pod of the operator would have nowhere to go.
    let tolerations: Vec<&str> =
        pod["tolerations"].as_array().unwrap().iter().filter_map(|t| t["key"].as_str()).collect();
    assert!(tolerations.contains(&"node.kubernetes.io/unschedulable"), "{tolerations:?}");
    // By this label the operator leaves its own pods where they are.
    let (key, value) = nkd_operator::budget::OWN;
    assert_eq!(deployment["spec"]["template"]["metadata"]["labels"][key], value);
    assert_eq!(deployment["spec"]["selector"]["matchLabels"][key], value);
}
