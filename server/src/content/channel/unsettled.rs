//! Repositories whose refs or signed summary are not what the list of releases says: what was ordered is done all the same,
//! for nodes pull by commit. Whoever ordered it is told, and it is tried again until it is right.

use std::sync::PoisonError;

use nkd_api::channel::PublishUpdate;
use serde::{Deserialize, Serialize};

use super::{ChannelError, Channels};
use crate::http::chain;
use crate::store::StoreError;

/// A line of what publishing says while it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PublishLine {
    /// What it says.
    #[serde(flatten)]
    pub update: PublishUpdate,
    /// With the release: why the repository's signed summary is not written yet, which is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary_problem: Option<String>,
}

impl Channels {
    /// How the writing of a repository's refs and summary went, which is told in the log and remembered.
    pub(super) fn note_settled(&self, profile: &str, settled: Result<(), ChannelError>) {
        let mut unsettled = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
        match settled {
            Ok(()) => drop(unsettled.remove(profile)),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, profile, "the summary is not written");
                unsettled.insert(profile.to_owned(), chain(&error));
            }
        }
    }

    /// Why the summary of a channel's repository is not what it should be.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn summary_problem(&self, channel: &str) -> Result<Option<String>, StoreError> {
        let Some((channel, _)) = self.store.channel(channel).await? else { return Ok(None) };
        Ok(self.unsettled.lock().unwrap_or_else(PoisonError::into_inner).get(&channel.profile).cloned())
    }

    /// Makes right what could not be before.
    ///
    /// # Errors
    /// [`ChannelError`]; it is to be tried again then.
    pub(super) async fn settle_again(&self) -> Result<(), ChannelError> {
        let profiles: Vec<String> =
            self.unsettled.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        let mut result = Ok(());
        for profile in profiles {
            let writing = self.turn().await?;
            let settled = self.settle_profile(&profile).await;
            drop(writing);
            match settled {
                Ok(()) => {
                    self.unsettled.lock().unwrap_or_else(PoisonError::into_inner).remove(&profile);
                    tracing::info!(profile, "the summary is written again");
                }
                // Another one is not held up by it.
                Err(error) => {
                    let mut unsettled = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
                    unsettled.insert(profile, chain(&error));
                    result = Err(error);
                }
            }
        }
        result
    }
}
