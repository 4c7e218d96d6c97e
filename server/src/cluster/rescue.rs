//! The I/O of bringing etcd back, and of tokens that are spent.
#![expect(clippy::disallowed_methods, reason = "the edge where clock and randomness come in")]

use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use super::bringup::{BringUpError, Work};
use super::order::{live_tokens, pki, token_prefix};
use super::peer::{self, EtcdWord};
use super::recovery::{self, InVain};

impl Work {
    /// What the etcd says that may have to be brought back; none where there is no reason to ask, or no answer.
    pub(super) async fn word_of_etcd(&self, in_vain: &[InVain]) -> Result<Option<EtcdWord>, BringUpError> {
        let now = OffsetDateTime::now_utc();
        let suspect = recovery::suspect(&self.record, in_vain, now).map(|index| &self.record.members[index]);
        let Some(address) = suspect.and_then(|member| member.address) else { return Ok(None) };
        let pki = pki(&self.service, &self.record).await?;
        let word = peer::word(&pki, address, now).await;
        // The kubelet restarts an etcd without a majority again and again.
        Ok(word.inspect_err(|e| tracing::debug!(error = e as &dyn std::error::Error, "etcd does not answer")).ok())
    }

    /// Orders it, unless the other one was given an order to join meanwhile.
    pub(super) async fn recover(&mut self, turn: &recovery::Turn) -> Result<(), BringUpError> {
        let service = Arc::clone(&self.service);
        let _nobody_joins = service.orders.asks.joins.lock().await;
        if turn.operation.is_some_and(|operation| !service.orders.asks.is_in_vain(operation)) {
            return Ok(());
        }
        let said = recovery::take(&mut self.record, turn, Uuid::now_v7(), OffsetDateTime::now_utc());
        Ok(self.save(said).await?)
    }

    /// Removes the tokens of joins that have ended, or are no more.
    pub(super) async fn forget_tokens(&self) -> Result<(), BringUpError> {
        let keep = live_tokens(&self.record);
        Ok(self.service.registry.store().delete_secrets(&token_prefix(self.record.id), &keep).await?)
    }
}
