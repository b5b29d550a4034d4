//! Asking one peer for events, and reading its answer piece by piece.

use std::{collections::HashSet, io, time::Duration};

use futures_util::{Stream, stream};
use iroh::endpoint::{Connection, RecvStream, SendStream};
use tokio::{
    io::{AsyncRead, BufReader},
    time::timeout,
};

use super::wire::{self, Rest, WireError};
use crate::gossip::state::TopicState;
use crate::protocol::{Event, EventId, event::compute_id, kinds::Class};

/// Bytes of an answer that are taken off the connection at a time: each time locks it.
const READ: usize = 32 * 1024;
/// How long an answer may go without progress.
pub const STALLED: Duration = Duration::from_secs(10);

/// A piece of an answer.
pub enum Piece {
    Event(Event),
    /// Nothing comes after it.
    End(Rest),
}

/// How long a stream is waited for: the other side allows so many, and each that ends makes room.
const OPENING: Duration = Duration::from_secs(60);

/// Opens a stream for a request about a topic.
///
/// # Errors
/// When the connection is broken or has no room, or the other side is no member; the text is for a
/// debug log.
pub async fn open(
    topic: &TopicState,
    connection: &Connection,
) -> Result<(SendStream, RecvStream), String> {
    let opened = timeout(OPENING, topic.open(connection)).await;
    opened.unwrap_or_else(|_| Err("no room for a stream".to_owned()))
}

/// Sends a request about a topic and returns the stream with its answer.
///
/// # Errors
/// When the connection is broken or stalls; the text is for a debug log.
pub async fn ask(
    topic: &TopicState,
    connection: &Connection,
    bytes: &[u8],
) -> Result<RecvStream, String> {
    let (mut send, receive) = open(topic, connection).await?;
    let sending = async {
        send.write_all(bytes).await.map_err(|e| e.to_string())?;
        send.finish().map_err(|e| e.to_string())?;
        Ok(receive)
    };
    timeout(STALLED, sending).await.unwrap_or_else(|_| Err("stalled".to_owned()))
}

/// The pieces of an answer, until its end or its first fault. `max` is the longest event taken.
pub fn pieces(
    answer: RecvStream,
    wanted: HashSet<EventId>,
    max: usize,
) -> impl Stream<Item = Result<Piece, WireError>> {
    let answer = BufReader::with_capacity(READ, answer);
    stream::unfold(Some((answer, wanted)), move |state| async move {
        let (mut answer, mut wanted) = state?;
        let piece = match timeout(STALLED, next(&mut answer, &mut wanted, max)).await {
            Ok(piece) => piece,
            Err(_) => Err(WireError::Io(io::ErrorKind::TimedOut.into())),
        };
        let state = matches!(piece, Ok(Piece::Event(_))).then_some((answer, wanted));
        Some((piece, state))
    })
}

/// The next event of an answer: one that was asked for, and only once.
async fn next(
    answer: &mut (impl AsyncRead + Unpin),
    wanted: &mut HashSet<EventId>,
    max: usize,
) -> Result<Piece, WireError> {
    let Some(json) = wire::read_event(answer, max).await? else {
        let rest = wire::read_rest(answer, wanted.len()).await?;
        if rest.gone.iter().any(|(_, id)| !wanted.remove(id)) {
            return Err(WireError::NotAsked);
        }
        return Ok(Piece::End(rest));
    };
    if wanted.is_empty() {
        return Err(WireError::TooMany);
    }
    let event = Event::parse(&json).map_err(|error| WireError::Event(error.to_string()))?;
    if !wanted.remove(&event.id) {
        return Err(WireError::NotAsked);
    }
    // What the pipeline refuses unverified, like a protected event, is refused for good: it must be
    // the event of this id. A forged signature is left to the pipeline.
    if compute_id(&event) != event.id {
        return Err(WireError::Forged);
    }
    // Nobody stores it, so nobody can have it to give.
    if event.class() == Class::Ephemeral {
        return Err(WireError::Malformed("an ephemeral event"));
    }
    Ok(Piece::Event(event))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(tags: &str, id: Option<EventId>) -> Event {
        let json = |id: &str| {
            format!(
                r#"{{"id":"{id}","pubkey":"{0:064x}","created_at":1,"kind":1,"tags":[{tags}],"content":"","sig":"{0:0128x}"}}"#,
                1
            )
        };
        let draft = Event::parse(&json(&"0".repeat(64))).unwrap();
        let id = id.unwrap_or_else(|| compute_id(&draft));
        Event::parse(&json(&id.to_string())).unwrap()
    }

    #[tokio::test]
    async fn a_copy_with_a_claimed_id_says_nothing_of_the_event() {
        let real = event("", None);
        let forged = event(r#"["-"]"#, Some(real.id));
        let answer = async |event: &Event| {
            let mut bytes = Vec::new();
            wire::write_event(&mut bytes, event.json()).await.unwrap();
            next(&mut &bytes[..], &mut HashSet::from([real.id]), 10_000).await
        };
        assert!(matches!(answer(&forged).await, Err(error @ WireError::Forged) if error.is_lie()));
        assert!(matches!(answer(&real).await, Ok(Piece::Event(event)) if event.id == real.id));
        let other = event(r#"["-"]"#, None);
        assert!(matches!(answer(&other).await, Err(WireError::NotAsked)));
    }

    #[tokio::test]
    async fn only_what_was_asked_for_can_be_gone() {
        let asked = EventId([1; 32]);
        let answer = async |gone: Vec<(u64, EventId)>| {
            let mut bytes = Vec::new();
            wire::write_end(&mut bytes, &Rest { cut: false, gone }).await.unwrap();
            next(&mut &bytes[..], &mut HashSet::from([asked]), 10_000).await
        };
        assert!(matches!(answer(vec![(1, asked)]).await, Ok(Piece::End(rest)) if !rest.cut));
        assert!(matches!(answer(vec![(1, EventId([2; 32]))]).await, Err(WireError::NotAsked)));
        let twice = vec![(1, asked), (1, asked)];
        assert!(matches!(answer(twice).await, Err(WireError::TooMany)));
    }
}
