//! Where nostr-sdk hands over events: inside its reading of the relay, so that a full pipeline slows
//! the relay down instead of losing events.

use std::{fmt, sync::Arc};

use nostr_sdk::{
    JsonUtil, RelayUrl, SubscriptionId,
    prelude::{AdmitPolicy, AdmitStatus, BoxedFuture, PolicyError},
};
use tokio::sync::mpsc;

use crate::protocol::{Event, EventError};

/// An event that a relay sent.
pub(super) struct Received {
    pub url: Arc<str>,
    pub event: Result<Event, EventError>,
}

/// The hook that nostr-sdk calls for each event of our subscription, and waits for.
pub(super) struct Intake {
    pub queue: mpsc::Sender<Received>,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Intake")
    }
}

impl AdmitPolicy for Intake {
    fn admit_event<'a>(
        &'a self,
        relay_url: &'a RelayUrl,
        _subscription: &'a SubscriptionId,
        event: &'a nostr_sdk::Event,
    ) -> BoxedFuture<'a, Result<AdmitStatus, PolicyError>> {
        Box::pin(async move {
            let received = Received {
                url: relay_url.as_str().trim_end_matches('/').into(),
                event: Event::parse(&event.as_json()),
            };
            // A closed queue means that the stream is ending.
            let _ = self.queue.send(received).await;
            // nostr-sdk need not keep or announce what the pipeline has taken.
            Ok(AdmitStatus::Rejected { reason: None })
        })
    }
}
