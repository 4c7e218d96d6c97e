//! A channel goes with all its releases; their objects leave the repository later, as those of retired ones do.
//!
//! The list without the channel, its commits among the retired ones and the audit trail are one write; refs and summary
//! follow, and are made right again at every start ([`Channels::settle`]). The numbers of its releases are never given
//! again: a channel of this name goes on where this one ended.

use std::sync::PoisonError;

use nkd_api::channel::DeletedChannel;
use nkd_api::user::AuditEntry;
use time::OffsetDateTime;

use super::polled::NEEDED_FOR;
use super::retire::taken_off;
use super::{ChannelError, Channels};

impl Channels {
    /// Deletes a channel that nobody needs.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing has changed then.
    pub async fn delete(&self, name: &str, by: &str, now: OffsetDateTime) -> Result<DeletedChannel, ChannelError> {
        let _writing = self.turn().await?;
        let (channel, revision) =
            self.store.channel(name).await?.ok_or_else(|| ChannelError::NoChannel(name.to_owned()))?;
        let polled = self.store.polled(name, now - NEEDED_FOR).await?;
        let trail: Vec<AuditEntry> = channel.releases.iter().map(|release| taken_off(name, release, by, now)).collect();
        let holds = self.store.delete_channel(&channel, revision, &trail, now).await?;
        if !holds.is_empty() {
            return Err(ChannelError::Held { channel: name.to_owned(), holds });
        }
        for release in &channel.releases {
            self.polled.lock().unwrap_or_else(PoisonError::into_inner).forget(name, &release.commit);
        }
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner).forget(name);
        self.metrics.forget(name);
        tracing::info!(channel = name, releases = channel.releases.len(), "a channel is deleted");
        // It is off the list whatever comes of that.
        self.note_settled(&channel.profile, self.settle_profile(&channel.profile).await);
        Ok(DeletedChannel { last_asked_at: polled.iter().map(|polled| polled.at).max(), channel })
    }
}
