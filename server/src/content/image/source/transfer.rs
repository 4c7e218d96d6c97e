//! One file on its way: what is kept of it, what to ask for, what came.

#![expect(clippy::disallowed_methods, reason = "keeps parts of files")]

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use http::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, StatusCode};
use nkd_api::Sha256Digest;
use reqwest::{Client, Response};
use serde::{Deserialize, Serialize};
use url::Url;

use super::download::{DownloadError, Failed, Fetched, check_status, io_error};
use super::public_url;
use crate::content::blob::{finish_hash, reserve, sync_dir, write_error};
use crate::content::image::progress::Progress;

/// What is remembered beside a part, to know whether the server still has the same file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    url: String,
    /// Strong ETag, or date of the last change.
    validator: Option<String>,
}

/// One file on its way.
pub(super) struct Transfer<'a> {
    url: &'a Url,
    sha256: Sha256Digest,
    limit: u64,
    path: PathBuf,
    notes: PathBuf,
    file: File,
    hash: Context,
    /// Bytes that are there.
    pub(super) offset: u64,
    kept: Kept,
}

impl<'a> Transfer<'a> {
    /// Takes up what is kept of a file.
    pub(super) async fn open(
        dir: &Path,
        url: &'a Url,
        sha256: Sha256Digest,
        limit: u64,
    ) -> Result<Self, DownloadError> {
        let path = dir.join(sha256.to_string());
        let notes = dir.join(format!("{sha256}.json"));
        let mut file = lock_partial(&path)?.ok_or_else(|| DownloadError::Busy { url: public_url(url) })?;
        let kept = fs::read(&notes).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let hashed = tokio::task::spawn_blocking(move || {
            let mut hash = Context::new(&SHA256);
            let mut writer = HashWriter(&mut hash);
            let len = io::copy(&mut file, &mut writer)?;
            Ok((file, hash, len))
        });
        let joined = hashed.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        let (file, hash, offset) = joined.map_err(io_error("read", &path))?;
        Ok(Self { url, sha256, limit, path, notes, file, hash, offset, kept })
    }

    /// Asks for what is missing.
    pub(super) async fn attempt(
        &mut self,
        client: &Client,
        stage: &str,
        progress: &dyn Progress,
    ) -> Result<(), Failed> {
        if self.offset > 0 && self.digest() == self.sha256 {
            progress.stage(stage, Some(self.offset));
            progress.advance(self.offset);
            return Ok(());
        }
        let mut request = client.get(self.url.clone()).header(ACCEPT_ENCODING, "identity");
        if self.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.offset));
            if let Some(validator) = self.kept.validator.as_ref().filter(|_| self.kept.url == self.url.as_str()) {
                request = request.header(IF_RANGE, validator);
            }
        }
        let response = request.send().await.map_err(Failed::transport)?;
        let total = self.accept(&response)?;
        if let Some(total) = total {
            if total > self.limit {
                return Err(Failed::too_large(self.url, total, self.limit));
            }
            reserve(&self.file, total, &self.path)?;
        }
        self.note(response.headers())?;
        progress.stage(stage, total);
        progress.advance(self.offset);
        self.receive(response, progress).await?;
        match total {
            Some(total) if self.offset < total => Err(Failed::Again(format!("{} of {total} bytes came", self.offset))),
            _ => Ok(()),
        }
    }

    /// Judges the answer's head: the length of the whole file, when it is told.
    fn accept(&mut self, response: &Response) -> Result<Option<u64>, Failed> {
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).and_then(parse_range);
                match range {
                    Some((start, total)) if start == self.offset => Ok(total),
                    _ => {
                        self.restart()?;
                        Err(Failed::Again("the server sent another range than was asked for".to_owned()))
                    }
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE if self.offset > 0 => {
                self.restart()?;
                Err(Failed::Again("the server has fewer bytes than were kept".to_owned()))
            }
            status => {
                check_status(self.url, status)?;
                self.restart()?;
                Ok(response.content_length())
            }
        }
    }

    async fn receive(&mut self, mut response: Response, progress: &dyn Progress) -> Result<(), Failed> {
        while let Some(chunk) = response.chunk().await.map_err(Failed::transport)? {
            let len = chunk.len() as u64;
            if self.offset + len > self.limit {
                return Err(Failed::too_large(self.url, self.offset + len, self.limit));
            }
            // A page cache write of some kilobytes; the blocking pool would cost more than it takes.
            self.file.write_all(&chunk).map_err(|e| write_error(e, self.offset + len, &self.path))?;
            self.hash.update(&chunk);
            self.offset += len;
            progress.advance(len);
        }
        Ok(())
    }

    /// Remembers what the server knows the file by. A weak ETag does not vouch for bytes.
    fn note(&mut self, headers: &HeaderMap) -> Result<(), DownloadError> {
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let validator = text(ETAG).filter(|t| t.starts_with('"')).or_else(|| text(LAST_MODIFIED));
        self.kept = Kept { url: self.url.to_string(), validator };
        let json = serde_json::to_vec(&self.kept).map_err(|e| io_error("write", &self.notes)(e.into()))?;
        fs::write(&self.notes, json).map_err(|e| write_error(e, 512, &self.notes))?;
        Ok(())
    }

    /// Begins anew with nothing.
    pub(super) fn restart(&mut self) -> Result<(), DownloadError> {
        self.file.set_len(0).map_err(io_error("empty", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(io_error("empty", &self.path))?;
        self.hash = Context::new(&SHA256);
        self.offset = 0;
        Ok(())
    }

    /// Keeps nothing.
    pub(super) fn discard(&mut self) -> Result<(), DownloadError> {
        self.restart()?;
        remove(&self.notes)?;
        remove(&self.path)
    }

    /// Digest of the bytes that are there.
    pub(super) fn digest(&self) -> Sha256Digest {
        finish_hash(self.hash.clone())
    }

    /// Makes the whole file durable.
    pub(super) fn finish(self) -> Result<Fetched, DownloadError> {
        self.file.sync_all().map_err(|e| write_error(e, self.offset, &self.path))?;
        remove(&self.notes)?;
        if let Some(dir) = self.path.parent() {
            sync_dir(dir)?;
        }
        Ok(Fetched { path: self.path, size: self.offset, _lock: self.file })
    }
}

struct HashWriter<'a>(&'a mut Context);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens and locks a part; `None` when another process has it.
fn lock_partial(path: &Path) -> Result<Option<File>, DownloadError> {
    // Between opening and locking, the former owner may have made the file a blob.
    for _ in 0..16 {
        let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.map_err(|e| write_error(e, 0, path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(e)) => return Err(io_error("lock", path)(e)),
        }
        let mine = file.metadata().map_err(io_error("examine", path))?;
        if fs::metadata(path).is_ok_and(|there| there.ino() == mine.ino() && there.dev() == mine.dev()) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// First byte and whole length of `Content-Range: bytes 5-9/10` (RFC 9110, 14.4).
fn parse_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()))
}

fn remove(path: &Path) -> Result<(), DownloadError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, None)));
        for bad in ["", "bytes */10", "bytes 5/10", "items 5-9/10", "bytes -9/10"] {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
    }
}
