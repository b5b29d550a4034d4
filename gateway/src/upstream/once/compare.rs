//! What the relay has: by comparing with it (NIP-77), or by asking for all of it page by page.

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt, stream::FuturesUnordered};
use negentropy::{Id, Negentropy, NegentropyStorageVector};

use super::{Difference, MOST, Run, SyncError};
use crate::{
    protocol::{EventId, Filter},
    tasks,
    upstream::link::{Item, NegError},
};

/// Bytes of one message; written in hexadecimal it is twice as long. At least 4,096.
const FRAME: usize = 200_000;
const LEAST_FRAME: usize = 4_096;
/// Messages of one comparison.
const ROUNDS: usize = 2_000;
/// Events of one page.
const PAGE: u64 = 500;
/// Pages without an event that had not come before.
const VAIN_PAGES: u32 = 2;

impl Run<'_> {
    /// Compares. The inner error says why the relay cannot, and paging is to be tried.
    pub(super) async fn compare(
        &self,
        here: &[(u64, EventId)],
    ) -> Result<Result<Difference, String>, SyncError> {
        let set = sorted(here.to_vec()).await?;
        let longest = self.link.limits().max_message_length.unwrap_or(usize::MAX);
        let frame = (longest / 2).saturating_sub(200).clamp(LEAST_FRAME, FRAME) as u64;
        let mut session = self.link.negentropy(&self.wanted.filter).await?;
        let mut message = step(&set, frame, None).await?.0.unwrap_or_default();
        let mut found = Difference::default();
        for _ in 0..ROUNDS {
            let answer = match session.exchange(&message).await {
                Ok(answer) => answer,
                Err(NegError::Link(error)) => return Err(error.into()),
                Err(error) => return Ok(Err(error.to_string())),
            };
            let (next, difference) = step(&set, frame, Some(answer)).await?;
            found.have.extend(difference.have);
            found.need.extend(difference.need);
            if found.need.len() > MOST {
                return Err(SyncError::TooMany);
            }
            match next {
                Some(next) => message = next,
                None => return Ok(Ok(found)),
            }
        }
        Ok(Err("the comparison does not end".to_owned()))
    }

    /// Asks for everything, newest first, and takes in what is not here if that is wanted. Returns the ids
    /// that the relay has.
    pub(super) async fn page(&self) -> Result<HashSet<EventId>, SyncError> {
        let mut seen = HashSet::new();
        let mut until = self.wanted.filter.until;
        let (mut vain, mut size) = (0, PAGE);
        let mut submitted = FuturesUnordered::new();
        loop {
            let filter = Filter { until, limit: Some(size), ..self.wanted.filter.clone() };
            let mut request = self.link.request(std::slice::from_ref(&filter)).await?;
            let (mut count, mut fresh) = (0_u64, 0_u64);
            let mut oldest = u64::MAX;
            let complete = loop {
                match self.next_item(&mut request, &mut submitted).await? {
                    Item::Closed(why) => return Err(SyncError::Closed(why)),
                    Item::Eose { complete } => break complete,
                    Item::Event(event) => {
                        count += 1;
                        if count > size.saturating_mul(2) {
                            return Err(SyncError::Endless("it sends more than its limit"));
                        }
                        oldest = oldest.min(event.created_at);
                        if !seen.insert(event.id) {
                            continue;
                        }
                        fresh += 1;
                        if seen.len() > MOST {
                            return Err(SyncError::TooMany);
                        }
                        if self.wanted.down {
                            submitted.push(self.take_in(event));
                        }
                    }
                }
            };
            drop(request);
            vain = if fresh == 0 { vain + 1 } else { 0 };
            if complete || count == 0 || vain >= VAIN_PAGES {
                break;
            }
            // Several events of one second may be cut by the page: it is asked for again. One that fills
            // pages all by itself is passed over after that.
            match until == Some(oldest) && fresh == 0 {
                true if oldest == 0 => break,
                true => until = Some(oldest - 1),
                false => until = Some(oldest),
            }
            size = if fresh * 2 < count { (size * 2).min(5_000) } else { PAGE };
        }
        while submitted.next().await.is_some() {}
        Ok(seen)
    }
}

async fn sorted(ids: Vec<(u64, EventId)>) -> Result<Arc<NegentropyStorageVector>, SyncError> {
    let sorted = tasks::blocking(move || {
        let mut sorted = NegentropyStorageVector::with_capacity(ids.len());
        for (created_at, id) in ids {
            sorted.insert(created_at, Id::from_byte_array(id.0))?;
        }
        sorted.seal()?;
        Ok::<_, negentropy::Error>(Arc::new(sorted))
    });
    sorted.await.map_err(broken)?.map_err(broken)
}

/// The first message, or what an answer tells and what to say next. Off the async workers: a large set
/// takes its time.
async fn step(
    set: &Arc<NegentropyStorageVector>,
    frame: u64,
    answer: Option<Vec<u8>>,
) -> Result<(Option<Vec<u8>>, Difference), SyncError> {
    let set = set.clone();
    let stepped = tasks::blocking(move || {
        let mut negentropy = Negentropy::borrowed(&*set, frame)?;
        let Some(answer) = answer else {
            return Ok::<_, negentropy::Error>((
                Some(negentropy.initiate()?),
                Difference::default(),
            ));
        };
        negentropy.set_initiator();
        let (mut have, mut need) = (Vec::new(), Vec::new());
        let next = negentropy.reconcile_with_ids(&answer, &mut have, &mut need)?;
        let ids = |ids: Vec<Id>| ids.into_iter().map(|id| EventId(id.to_bytes())).collect();
        Ok((next, Difference { have: ids(have), need: ids(need) }))
    });
    stepped.await.map_err(broken)?.map_err(broken)
}

fn broken(error: impl ToString) -> SyncError {
    SyncError::Compared(error.to_string())
}
