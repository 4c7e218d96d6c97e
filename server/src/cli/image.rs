//! `nkd image ...`
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use nkd_api::image::{CollectedGarbage, Image, ImportOrder, ImportUpdate};
use reqwest::Method;
use time::OffsetDateTime;

use super::CliError;
use super::client::{self, ClientError, segment};
use super::context::ContextArgs;
use super::output::{OutputArgs, age, bytes, table};

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Import an image: a folder, an ISO, a stream document (file or address)
    Import {
        /// Path on the service's host, or http(s) address of a stream document
        source: String,
        /// Name [default: PROFILE-VERSION-ARCHITECTURE]
        #[arg(long)]
        name: Option<String>,
        /// Profile: nestos, fedora-coreos or lab
        #[arg(long)]
        profile: Option<String>,
        /// Version, when the source has several
        #[arg(long)]
        version: Option<String>,
        /// Architecture, when the source has several
        #[arg(long)]
        architecture: Option<String>,
        /// Version of Kubernetes that it holds, like v1.31.4: clusters of this version take it
        #[arg(long, value_name = "VERSION")]
        kubernetes: Option<String>,
        /// File of OpenPGP public keys; then every file must be signed
        #[arg(long, value_name = "FILE")]
        key: Option<String>,
        /// PEM file of certificates that the source's server is trusted by, on the service's host
        #[arg(long, value_name = "FILE")]
        source_ca: Option<String>,
        /// Replace an image of the same name
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List images
    List(OutputArgs),
    /// Show an image and its files
    Show {
        /// Name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove an image that no machine uses
    Remove {
        /// Name
        name: String,
    },
    /// Remove files that no image uses
    Gc {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Parts of broken downloads too, whatever their age
        #[arg(long)]
        partial: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the profiles that the service knows
    Profiles(OutputArgs),
}

pub(super) async fn run(command: ImageCommand, context: &ContextArgs) -> Result<(), CliError> {
    let client = context.client()?;
    match command {
        ImageCommand::Import {
            source,
            name,
            profile,
            version,
            architecture,
            kubernetes,
            key,
            source_ca,
            replace,
            output,
        } => {
            let absolute = |path: String| match path.contains("://") {
                true => path,
                false => std::path::absolute(&path).map_or(path, |p| p.display().to_string()),
            };
            let source = absolute(source);
            let (key, source_ca) = (key.map(absolute), source_ca.map(absolute));
            let order =
                ImportOrder { source, name, profile, version, architecture, kubernetes, key, source_ca, replace };
            let response = client.send(Method::POST, "/api/v1/images", Some(&order)).await?;
            let image = follow(response).await?;
            output.print(&image, |i| format!("imported {}", i.name));
        }
        ImageCommand::List(output) => {
            let images: Vec<Image> = client.get("/api/v1/images").await?;
            let now = OffsetDateTime::now_utc();
            output.print(&images, |images| {
                table(
                    &["NAME", "PROFILE", "VERSION", "ARCH", "KUBERNETES", "SIZE", "SIGNED", "AGE"],
                    images.iter().map(|i| {
                        vec![
                            i.name.clone(),
                            i.profile.clone(),
                            i.version.clone(),
                            i.architecture.clone(),
                            i.kubernetes.clone().unwrap_or_else(|| "-".into()),
                            bytes(i.artifacts.iter().map(|a| a.size).sum()),
                            i.signed_by.as_ref().map_or("no", |_| "yes").into(),
                            age(i.imported_at, now),
                        ]
                    }),
                )
            });
        }
        ImageCommand::Show { name, output } => {
            let image: Image = client.get(&format!("/api/v1/images/{}", segment(&name))).await?;
            output.print(&image, |i| {
                let files = table(
                    &["FILE", "SIZE", "SHA256", "NAME"],
                    i.artifacts.iter().map(|a| vec![a.kind.as_str().into(), bytes(a.size), a.sha256.to_string(), a.file.clone()]),
                );
                let kubernetes = i.kubernetes.as_deref().unwrap_or("not said");
                let signed = i.signed_by.as_deref().unwrap_or("nobody");
                format!("Name:     {}\nProfile:  {}\nVersion:  {}\nArch:     {}\nKubernetes: {kubernetes}\nSource:   {}\nSigned:   {signed}\n\n{files}", i.name, i.profile, i.version, i.architecture, i.source)
            });
        }
        ImageCommand::Remove { name } => {
            client.delete(&format!("/api/v1/images/{}", segment(&name))).await?;
            println!("removed {name}; `nkd image gc` frees its space");
        }
        ImageCommand::Gc { dry_run, partial, output } => {
            let garbage: CollectedGarbage = client
                .call(Method::POST, &format!("/api/v1/garbage?dryRun={dry_run}&partial={partial}"), None::<&()>)
                .await?;
            output.print(&garbage, |g| {
                let verb = if g.dry_run { "would be removed" } else { "removed" };
                let mut text = format!("{} files, {} {verb}", g.blobs.len() + g.files.len(), bytes(g.bytes));
                if g.kept > 0 {
                    let kept = bytes(g.kept);
                    text.push_str(&format!(
                        "; {kept} of broken downloads stay a week for the next try (--partial removes them too)"
                    ));
                }
                text
            });
        }
        ImageCommand::Profiles(output) => {
            let profiles: Vec<nkd_api::profile::Profile> = client.get("/api/v1/profiles").await?;
            output.print(&profiles, |profiles| {
                table(
                    &["NAME", "INSTALLER", "IGNITION", "USER", "DESCRIPTION"],
                    profiles.iter().map(|p| {
                        vec![
                            p.name.clone(),
                            p.installer.clone(),
                            p.ignition_spec.clone(),
                            p.default_user.clone(),
                            p.description.clone(),
                        ]
                    }),
                )
            });
        }
    }
    Ok(())
}

/// Shows the progress of an import until its last line.
async fn follow(response: reqwest::Response) -> Result<Image, CliError> {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg:>10} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let image = client::follow(response, |line| {
        match line {
            ImportUpdate::Stage { name, total } => {
                bar.set_message(name);
                bar.set_position(0);
                bar.set_length(total.unwrap_or(0));
            }
            ImportUpdate::Progress { bytes } => bar.set_position(bytes),
            ImportUpdate::Warning { message } => bar.suspend(|| eprintln!("warning: {message}")),
            ImportUpdate::Done { image } => return Some(Ok(image)),
            ImportUpdate::Failed { message } => return Some(Err(ClientError::Import(message))),
        }
        None
    });
    let image = image.await;
    bar.finish_and_clear();
    Ok(image.ok_or_else(|| ClientError::BrokeOff("nkd image list".into()))??)
}
