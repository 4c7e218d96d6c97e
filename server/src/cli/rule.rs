//! `nkd rule ...`

use std::path::PathBuf;

use clap::Subcommand;
use nkd_api::machine::{AcceptRule, MatchFields};
use reqwest::Method;

use super::CliError;
use super::client::segment;
use super::context::ContextArgs;
use super::machine::{AssignArgs, read_document};
use super::output::{OutputArgs, table};

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one value a process")]
pub(super) enum RuleCommand {
    /// List rules
    List(OutputArgs),
    /// Write a rule, from flags or a file; machines that wait and fit are let in at once
    Set {
        /// Name of the rule
        name: Option<String>,
        /// YAML or JSON file with the whole rule
        #[arg(short, long, conflicts_with_all = ["name", "mac", "vendor", "product", "serial", "label", "image"])]
        file: Option<PathBuf>,
        /// MAC address or its beginning, 52:54:00:*
        #[arg(long)]
        mac: Option<String>,
        /// Manufacturer
        #[arg(long)]
        vendor: Option<String>,
        /// Product
        #[arg(long)]
        product: Option<String>,
        /// Serial number
        #[arg(long)]
        serial: Option<String>,
        /// Label that a machine must carry
        #[arg(long, value_name = "KEY=VALUE", value_parser = super::name_value)]
        label: Vec<(String, String)>,
        /// Label that a machine gets
        #[arg(long, value_name = "KEY=VALUE", value_parser = super::name_value)]
        set_label: Vec<(String, String)>,
        #[command(flatten)]
        assign: AssignArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove a rule; machines that it let in stay
    Remove {
        /// Name
        name: String,
    },
}

pub(super) async fn run(command: RuleCommand, context: &ContextArgs) -> Result<(), CliError> {
    let client = context.client()?;
    match command {
        RuleCommand::List(output) => {
            let rules: Vec<AcceptRule> = client.get("/api/v1/rules").await?;
            output.print(&rules, |rules| {
                table(
                    &["NAME", "MATCHES", "IMAGE"],
                    rules.iter().map(|r| {
                        vec![
                            r.name.clone(),
                            describe(&r.matches),
                            r.assignment.as_ref().map_or("-".into(), |a| a.image.clone()),
                        ]
                    }),
                )
            });
        }
        RuleCommand::Set { name, file, mac, vendor, product, serial, label, set_label, assign, output } => {
            let rule = match file {
                Some(file) => read_document(&file)?,
                None => AcceptRule {
                    name: name.ok_or_else(|| CliError::Words("rule set: give the rule a name, or --file".into()))?,
                    matches: MatchFields {
                        mac,
                        uuid: None,
                        serial,
                        vendor,
                        product,
                        labels: label.into_iter().collect(),
                    },
                    labels: set_label.into_iter().collect(),
                    assignment: assign.assignment()?,
                },
            };
            let let_in: Vec<String> = client.call(Method::PUT, "/api/v1/rules", Some(&rule)).await?;
            output.print(&let_in, |let_in| match let_in.len() {
                0 => format!("rule {} is set", rule.name),
                n => format!("rule {} is set; it let in {n} machines: {}", rule.name, let_in.join(", ")),
            });
        }
        RuleCommand::Remove { name } => {
            client.delete(&format!("/api/v1/rules/{}", segment(&name))).await?;
            println!("removed {name}");
        }
    }
    Ok(())
}

fn describe(fields: &MatchFields) -> String {
    let single = [
        ("mac", &fields.mac),
        ("uuid", &fields.uuid),
        ("serial", &fields.serial),
        ("vendor", &fields.vendor),
        ("product", &fields.product),
    ];
    let mut parts: Vec<String> = single.iter().filter_map(|(k, v)| Some(format!("{k}={}", v.as_ref()?))).collect();
    parts.extend(fields.labels.iter().map(|(k, v)| format!("label {k}={v}")));
    parts.join(", ")
}
