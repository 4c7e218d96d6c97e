//! The image store: node images, imported whole or not at all.
//!
//! [`ImageStore`] keeps blobs by digest and a list of images; an import resolves its source to a plan, stores and
//! checks every file of it, and then publishes the image in one step. Several processes may use one state folder: the
//! service, and the command line on its host.

pub mod catalog;
pub mod error;
mod garbage;
mod import;
pub mod metrics;
pub mod profile;
pub mod progress;
pub mod source;
mod unpack;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nkd_api::Sha256Digest;
use nkd_api::image::Image;
use time::OffsetDateTime;

use self::catalog::{Catalog, CatalogError, check_name};
use self::error::{ImportError, io_error};
pub use self::garbage::{Garbage, GarbageRequest};
use self::import::{Importer, blocking};
pub use self::import::{Limits, SignaturePolicy};
use self::metrics::Metrics;
use self::progress::Progress;
use self::source::download::{Fetcher, Retry};
use self::source::folder::check_choice;
use self::source::signature::Keyring;
use self::source::stream::Base;
use self::source::{Choice, Plan, Source};
use super::blob::{BlobError, BlobStore};

/// What is to be imported, and how it is checked.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// Where it is.
    pub source: Source,
    /// Name of the image; `<profile>-<version>-<architecture>` otherwise.
    pub name: Option<String>,
    /// Profile, when the source does not tell it or tells another.
    pub profile: Option<String>,
    /// Which architecture, when the source has several or does not tell it.
    pub architecture: Option<String>,
    /// Which version, when the source has several or does not tell it.
    pub version: Option<String>,
    /// File of OpenPGP public keys, binary or armored.
    pub key: Option<PathBuf>,
    /// What a key asks for.
    pub signature: SignaturePolicy,
    /// PEM file of certificates that servers are trusted by, beside those of the host.
    pub authorities: Option<PathBuf>,
    /// Take the place of an image of this name.
    pub replace: bool,
    /// Version of Kubernetes that the image holds, as the operator says.
    pub kubernetes: Option<String>,
    /// Patience with servers.
    pub retry: Retry,
    /// The most bytes of each file.
    pub limits: Limits,
}

impl ImportRequest {
    /// A request with every default.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            source,
            name: None,
            profile: None,
            architecture: None,
            version: None,
            key: None,
            signature: SignaturePolicy::default(),
            authorities: None,
            kubernetes: None,
            replace: false,
            retry: Retry::default(),
            limits: Limits::default(),
        }
    }

    fn choice(&self) -> Choice {
        Choice { profile: self.profile.clone(), version: self.version.clone(), architecture: self.architecture.clone() }
    }
}

/// Images and their blobs under one state folder.
#[derive(Debug)]
pub struct ImageStore {
    state_dir: PathBuf,
    blobs: BlobStore,
    catalog: Catalog,
    metrics: Metrics,
}

impl ImageStore {
    /// Opens the store under a state folder and makes its folders.
    ///
    /// # Errors
    /// [`CatalogError`] when the folders cannot be made or read.
    pub fn open(state_dir: &Path) -> Result<Self, CatalogError> {
        std::fs::create_dir_all(state_dir).map_err(|source| CatalogError::Io {
            action: "create",
            path: state_dir.to_path_buf(),
            source,
        })?;
        let blobs = BlobStore::open(state_dir)?;
        Ok(Self {
            state_dir: state_dir.to_path_buf(),
            blobs,
            catalog: Catalog::open(state_dir)?,
            metrics: Metrics::default(),
        })
    }

    /// Counts in these metrics from now on.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// All images by name. Cheap: from memory, unless the folder changed.
    ///
    /// # Errors
    /// [`CatalogError`] when the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Arc<Image>>, CatalogError> {
        self.catalog.list()
    }

    /// The image of this name. Cheap, like [`Self::list`].
    ///
    /// # Errors
    /// [`CatalogError`] when its document or the folder cannot be read: not the same as no such image.
    pub fn image(&self, name: &str) -> Result<Option<Arc<Image>>, CatalogError> {
        self.catalog.image(name)
    }

    /// The blobs.
    #[must_use]
    pub fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    /// Opens a blob for reading; the file and its length in bytes.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], or [`BlobError::Io`] when the store itself is in trouble.
    pub fn open_blob(&self, digest: &Sha256Digest) -> Result<(File, u64), BlobError> {
        self.blobs.open_blob(digest)
    }

    /// Reads all blobs of an image again and compares them with their digests.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], or the first blob that is missing or damaged.
    pub fn verify(&self, name: &str, progress: &dyn Progress) -> Result<(), CatalogError> {
        let image = self.image(name)?.ok_or_else(|| CatalogError::NotFound(name.to_owned()))?;
        for artifact in &image.artifacts {
            progress.stage(artifact.kind.as_str(), Some(artifact.size));
            self.blobs.verify(&artifact.sha256, |n| progress.advance(n))?;
        }
        Ok(())
    }

    /// Imports an image. Importing the same build again changes nothing.
    ///
    /// # Errors
    /// [`ImportError`]; the list of images is as before then. What was fetched is kept for the next attempt until
    /// garbage is collected.
    pub async fn import(
        &self,
        request: ImportRequest,
        progress: Arc<dyn Progress>,
        now: OffsetDateTime,
    ) -> Result<Arc<Image>, ImportError> {
        let result = self.import_uncounted(request, progress, now).await;
        match &result {
            Ok(image) => self.metrics.imported(image.artifacts.iter().map(|a| a.size).sum()),
            Err(error) => {
                tracing::warn!(error = error as &dyn std::error::Error, "import failed");
                self.metrics.failed();
            }
        }
        result
    }

    async fn import_uncounted(
        &self,
        request: ImportRequest,
        progress: Arc<dyn Progress>,
        now: OffsetDateTime,
    ) -> Result<Arc<Image>, ImportError> {
        let choice = request.choice();
        check_choice(&choice)?;
        if let Some(name) = &request.name {
            check_name(name)?;
        }
        let key = request.key.clone();
        let keyring = blocking(move || key.as_deref().map(Keyring::from_file).transpose().map_err(ImportError::Key));
        let keyring = keyring.await?.map(Arc::new);
        let fetcher = Fetcher::new(self.state_dir.join("partial"), request.authorities.clone(), request.retry);
        // Held until the image is published: no garbage is collected meanwhile.
        let state_dir = self.state_dir.clone();
        let _lock = blocking(move || garbage::lock_import(&state_dir)).await?;
        let plan = resolve(request.source.clone(), choice, &fetcher).await?;
        let (build, source) = (plan.build.clone(), request.source.to_string());
        if profile::by_name(&build.profile).is_none() {
            return Err(ImportError::Request {
                what: "profile",
                value: build.profile,
                reason: "there are nestos, fedora-coreos and lab",
            });
        }
        if let Some(version) = request.kubernetes.clone().filter(|v| crate::cluster::file::syntax::version(v).is_none())
        {
            return Err(ImportError::Request { what: "kubernetes", value: version, reason: "write it like v1.31.4" });
        }
        let name = request.name.clone().unwrap_or_else(|| build.to_string());
        check_name(&name)?;
        tracing::info!(image = name, source, "importing");
        let importer = Importer {
            blobs: self.blobs.clone(),
            keyring,
            policy: request.signature,
            limits: request.limits,
            fetcher,
            progress,
        };
        let imported = importer.run(plan).await?;
        let image = Image {
            name,
            profile: build.profile,
            version: build.version,
            architecture: build.architecture,
            artifacts: imported.artifacts,
            imported_at: now,
            source,
            kubernetes: request.kubernetes,
            signed_by: imported.signed_by,
        };
        self.catalog.publish(&image, request.replace)?;
        tracing::info!(image = image.name, "imported");
        Ok(Arc::new(image))
    }

    /// Removes an image from the list, unless `in_use` names it. Its blobs stay until garbage is collected.
    ///
    /// # Errors
    /// [`CatalogError::InUse`], [`CatalogError::NotFound`].
    pub fn remove(&self, name: &str, in_use: &BTreeSet<String>) -> Result<(), CatalogError> {
        self.catalog.remove(name, in_use)
    }

    /// Removes blobs that no image uses and that are not among `held`, and what broken imports left.
    ///
    /// # Errors
    /// [`CatalogError::ImportUnderWay`]; [`CatalogError::Damaged`] when it cannot be told what is used.
    pub fn collect_garbage(
        &self,
        request: GarbageRequest,
        held: &BTreeSet<Sha256Digest>,
    ) -> Result<Garbage, CatalogError> {
        garbage::collect(&self.state_dir, &self.blobs, &self.catalog, held, request)
    }

    /// Keeps imports from beginning as long as the result lives: what they would find may go.
    ///
    /// # Errors
    /// [`CatalogError::ImportUnderWay`].
    pub fn hold_imports(&self) -> Result<File, CatalogError> {
        garbage::lock_collecting(&self.state_dir)
    }

    /// Digests of blobs that any image uses.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`] when a document cannot be read, since what it uses is unknown then.
    pub fn referenced(&self) -> Result<BTreeSet<Sha256Digest>, CatalogError> {
        self.catalog.referenced()
    }
}

async fn resolve(source: Source, choice: Choice, fetcher: &Fetcher) -> Result<Plan, ImportError> {
    match source {
        Source::Folder(path) => blocking(move || source::resolve_folder(&path, &choice)).await,
        Source::Iso(path) => blocking(move || source::iso::resolve_iso(&path, &choice)).await,
        Source::StreamFile(path) => blocking(move || source::resolve_stream_file(&path, &choice)).await,
        Source::StreamUrl(url) => {
            let (text, url) = fetcher.small(&url, source::folder::MAX_SMALL).await?;
            let text = String::from_utf8_lossy(&text);
            let origin = source::public_url(&url);
            let build = source::read_stream(&text, Base::Url(&url), &choice, &origin)?;
            // Relative locations became addresses when the document was read.
            let no_file = |path: &str| Err(io_error("open", Path::new(path))(std::io::ErrorKind::NotFound.into()));
            source::plan_stream(build, &choice, &origin, no_file)
        }
    }
}
