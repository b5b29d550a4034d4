//! A reconciliation (NIP-77), as its leading side has it.

use std::sync::atomic::Ordering;

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};

use super::{
    Link, NegError,
    actor::{Command, Kind, Opening},
    subscription_id,
};
use crate::protocol::{Filter, remote};

/// What the relay says to a reconciliation.
#[derive(Debug)]
pub(super) enum NegAnswer {
    Message(Vec<u8>),
    Refused(String),
    Notice(String),
}

/// Answers that nobody has read yet. An honest relay sends one for each message.
const ANSWERS: usize = 1;

/// A reconciliation of one filter. Dropping it closes it.
pub struct NegSession {
    link: Link,
    filter: Filter,
    key: u64,
    /// From when it is open on.
    answers: Option<mpsc::Receiver<NegAnswer>>,
    _permit: OwnedSemaphorePermit,
}

impl NegSession {
    pub(super) fn new(link: Link, filter: Filter, permit: OwnedSemaphorePermit) -> Self {
        let key = link.0.shared.next.fetch_add(1, Ordering::Relaxed);
        Self { link, filter, key, answers: None, _permit: permit }
    }

    /// Sends a message and waits for the answer. The first one opens the session on the relay.
    ///
    /// # Errors
    /// When the relay refuses, does not answer in time, or does not know NIP-77; the session is over then.
    pub async fn exchange(&mut self, message: &[u8]) -> Result<Vec<u8>, NegError> {
        let id = subscription_id(self.key);
        let answers = match &mut self.answers {
            Some(answers) => {
                let text = self.link.fitting(remote::neg_message(&id, message))?;
                self.link.order(Command::Say(text)).await?;
                answers
            }
            none => {
                let text = self.link.fitting(remote::neg_open(&id, &self.filter, message))?;
                let (answer, answers) = mpsc::channel(ANSWERS);
                let kind = Kind::Negentropy { answer };
                self.link.order(Command::Open(Opening { key: self.key, text, kind })).await?;
                none.insert(answers)
            }
        };
        let after = self.link.timeouts().answer;
        match timeout(after, answers.recv()).await {
            Ok(Some(NegAnswer::Message(message))) => Ok(message),
            Ok(Some(NegAnswer::Refused(reason))) => Err(NegError::Refused(reason)),
            Ok(Some(NegAnswer::Notice(text))) => Err(NegError::Notice(text)),
            Ok(None) => Err(self.link.closed().await.into()),
            Err(_) => Err(NegError::Silent(after)),
        }
    }
}

impl Drop for NegSession {
    fn drop(&mut self) {
        if self.answers.is_some() {
            self.link.0.shared.drop_key(self.key);
        }
    }
}
