//! All that is stored, into a file.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde_json::json;

use crate::{
    admin::api::{Cause, Line, Refusal},
    pipeline::{EventReader, LogEntry, Seq},
    protocol::{Filter, TopicName},
};

/// Log entries that are read at once.
const PAGE: usize = 500;
/// Bytes of events in one line of an answer, unless a single one is longer.
const LINE: usize = 256 * 1024;

/// What is stored, in the order in which it came, as lines of an answer. It reads the log a page at a time,
/// so no writer waits, and what comes meanwhile is not part of it.
/// Of a topic, in the order in which it became part of that.
///
/// # Errors
/// When the filter is not one for an export.
pub(super) fn export(
    reader: Arc<dyn EventReader>,
    filter: Option<Filter>,
    topic: Option<TopicName>,
) -> Result<stream::BoxStream<'static, Line>, Refusal> {
    if filter.as_ref().is_some_and(|filter| filter.words().is_some() || filter.limit.is_some()) {
        let why =
            "the filter: `search` and `limit` choose by rank and age; an export has all in order";
        return Err(Refusal::new(Cause::Wrong, why));
    }
    let until = *reader.head().borrow();
    let exporting = Exporting { reader, filter, topic, after: 0, until, count: 0, over: false };
    Ok(stream::unfold(exporting, |mut exporting| async move {
        let line = exporting.next().await?;
        Some((line, exporting))
    })
    .boxed())
}

struct Exporting {
    reader: Arc<dyn EventReader>,
    filter: Option<Filter>,
    topic: Option<TopicName>,
    after: Seq,
    until: Seq,
    count: u64,
    over: bool,
}

impl Exporting {
    async fn next(&mut self) -> Option<Line> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        while !self.over && self.after < self.until && bytes < LINE {
            let page = match self.reader.log_after(self.after, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    self.over = true;
                    return Some(Line::Refused(Refusal::new(Cause::Failed, error)));
                }
            };
            let Some(last) = page.last() else {
                self.after = self.until;
                break;
            };
            self.after = last.seq;
            for entry in page.iter().filter(|entry| self.wants(entry)) {
                bytes += entry.event.json().len();
                events.push(entry.event.json().to_owned());
            }
        }
        if !events.is_empty() {
            self.count += events.len() as u64;
            let progress = json!({ "events": events, "position": self.after, "of": self.until });
            return Some(Line::Progress(progress));
        }
        if self.over {
            return None;
        }
        self.over = true;
        Some(Line::Done(json!({ "exported": self.count })))
    }

    /// An event that entered another topic later stands in the log once more.
    fn wants(&self, entry: &LogEntry) -> bool {
        let is_news = match &self.topic {
            None => entry.first,
            Some(topic) => entry.topic.as_ref() == Some(topic),
        };
        is_news
            && entry.seq <= self.until
            && self.filter.as_ref().is_none_or(|filter| filter.matches(&entry.event))
    }
}
