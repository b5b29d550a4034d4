//! Waiting for what a client is told.

use anyhow::{Context, Result, bail};
use nostr_gateway_tests::PATIENCE;
use nostr_sdk::prelude::*;
use tokio::{
    sync::broadcast::Receiver,
    time::{Instant, timeout, timeout_at},
};

use super::SILENCE;

/// What a client was told, in order.
pub struct Inbox {
    notifications: Receiver<RelayPoolNotification>,
    pub all: Vec<Got>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    Event(EventId),
    Eose,
    Closed(String),
}

impl Inbox {
    pub fn of(client: &Client) -> Self {
        Self { notifications: client.notifications(), all: Vec::new() }
    }

    async fn next(&mut self) -> Result<()> {
        let RelayPoolNotification::Message { message, .. } = self.notifications.recv().await?
        else {
            return Ok(());
        };
        match message {
            RelayMessage::Event { event, .. } => self.all.push(Got::Event(event.id)),
            RelayMessage::EndOfStoredEvents(_) => self.all.push(Got::Eose),
            RelayMessage::Closed { message, .. } => {
                self.all.push(Got::Closed(message.into_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    pub async fn until(&mut self, wanted: impl Fn(&Got) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.all.iter().any(&wanted) {
            let Ok(next) = timeout_at(deadline, self.next()).await else {
                bail!("it did not come within {PATIENCE:?}; got {:?}", self.all);
            };
            next?;
        }
        Ok(())
    }

    pub async fn event(&mut self, event: &Event) -> Result<()> {
        let wanted = self.until(|got| *got == Got::Event(event.id)).await;
        wanted.with_context(|| format!("event {:?}", event.content))
    }

    /// Leaves the relay the time to send what it must not send.
    pub async fn silence(&mut self) {
        let _ = timeout(SILENCE, async { while self.next().await.is_ok() {} }).await;
    }
}
