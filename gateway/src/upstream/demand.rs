//! What a relay is asked for.

use super::config::History;
use crate::{
    pipeline::streams::Part,
    protocol::{Event, Filter, crossing},
};

/// How far back the requests are fetched that act on events of unnamed authors: a public relay has very
/// many. What they deleted before is not on that relay any more.
const REQUESTS: u64 = 30 * 86_400;
/// Tells the cursor of such requests from that of the part that they belong to.
const OF_REQUESTS: Part = 0x7265_7175_6573_7473;

/// All that one relay of a stream is asked for. It may change at any time, without a new connection.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Demand {
    pub wanted: Vec<Wanted>,
    /// Events a second that are taken; 0 is no bound.
    pub events_per_s: u32,
}

/// A part of it, with a durable cursor of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Without `limit`.
    pub filter: Filter,
    /// Of what comes, only what belongs to a stream with this filter is taken. It then is what acts on
    /// such events: see [`crossing::requests`].
    pub concerning: Option<Filter>,
    pub history: History,
    /// The cursor's key: another one catches up anew.
    pub part: Part,
}

impl Wanted {
    /// Events that match, and the requests which act on such.
    pub fn with_requests(filter: &Filter, history: History, part: Part) -> Vec<Self> {
        let filter = Filter { limit: None, ..filter.clone() };
        let requests = crossing::requests(&filter).map(|requests| Self {
            history: match (&requests.authors, history) {
                (None, History::All) => History::Seconds(REQUESTS),
                (None, History::Seconds(seconds)) => History::Seconds(seconds.min(REQUESTS)),
                (_, history) => history,
            },
            filter: requests,
            concerning: Some(filter.clone()),
            part: part ^ OF_REQUESTS,
        });
        let events = Self { filter, concerning: None, history, part };
        std::iter::once(events).chain(requests).collect()
    }

    /// Whether to take an event that came for this.
    pub fn takes(&self, event: &Event) -> bool {
        self.filter.matches(event)
            && self.concerning.as_ref().is_none_or(|filter| crossing::concerns(filter, event))
    }
}

impl Demand {
    /// Whether any part takes the event.
    pub fn takes(&self, event: &Event) -> bool {
        self.wanted.iter().any(|wanted| wanted.takes(event))
    }
}

/// Filters that together match what one matches, each short enough to be sent: the longest of its lists
/// is cut. `None` when it cannot be cut so far.
pub(super) fn fitting(filter: &Filter, max_bytes: usize) -> Option<Vec<Filter>> {
    let (mut open, mut fitting) = (vec![filter.clone()], Vec::new());
    while let Some(filter) = open.pop() {
        if length(&filter) <= max_bytes {
            fitting.push(filter);
            continue;
        }
        let (first, second) = halves(&filter)?;
        open.extend([second, first]);
    }
    Some(fitting)
}

/// How many bytes it is when it is sent.
pub(super) fn length(filter: &Filter) -> usize {
    serde_json::to_string(filter).map_or(usize::MAX, |text| text.len())
}

fn halves(filter: &Filter) -> Option<(Filter, Filter)> {
    fn cut<T>(list: &mut Vec<T>) -> Vec<T> {
        list.split_off(list.len() / 2)
    }
    let (mut first, mut second) = (filter.clone(), filter.clone());
    let count = |list: Option<usize>| list.unwrap_or(0);
    let ids = count(filter.ids.as_ref().map(Vec::len));
    let authors = count(filter.authors.as_ref().map(Vec::len));
    let longest = filter.tags.iter().enumerate().max_by_key(|(_, (_, values))| values.len());
    let (tag, values) = longest.map_or((0, 0), |(at, (_, values))| (at, values.len()));
    if ids.max(authors).max(values) < 2 {
        return None;
    }
    if ids >= authors && ids >= values {
        second.ids = first.ids.as_mut().map(cut);
    } else if authors >= values {
        second.authors = first.authors.as_mut().map(cut);
    } else {
        second.tags[tag].1 = cut(&mut first.tags[tag].1);
    }
    Some((first, second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{PublicKey, signing::Author};

    #[test]
    fn a_long_filter_is_cut_into_filters_that_match_the_same() {
        let keys: Vec<PublicKey> = (0..200).map(|n| PublicKey([n; 32])).collect();
        let values: Vec<String> = (0..70).map(|n| format!("value {n:03}")).collect();
        let filter = Filter {
            authors: Some(keys.clone()),
            tags: vec![(b't', values.clone())],
            ..Filter::default()
        };
        let cut = fitting(&filter, 2_000).unwrap();
        assert!(cut.iter().all(|filter| length(filter) <= 2_000));
        let mut pairs: Vec<_> = cut
            .iter()
            .flat_map(|filter| {
                let values = filter.tags[0].1.clone();
                let authors = filter.authors.clone().unwrap();
                authors
                    .into_iter()
                    .flat_map(move |key| values.clone().into_iter().map(move |v| (key, v)))
            })
            .collect();
        pairs.sort();
        let all = keys.iter().flat_map(|key| values.iter().map(|value| (*key, value.clone())));
        assert!(pairs.into_iter().eq(all), "each pair once");
        assert_eq!(fitting(&filter, 1 << 20).unwrap(), [filter.clone()]);
        assert_eq!(fitting(&filter, 20), None);
    }

    #[test]
    fn requests_are_taken_that_act_on_what_is_wanted() {
        let filter = Filter::parse(r#"{"kinds":[1],"limit":5}"#).unwrap();
        let wanted = Wanted::with_requests(&filter, History::All, 7);
        assert_eq!(wanted.len(), 2);
        assert_eq!((wanted[0].filter.limit, wanted[0].history), (None, History::All));
        assert_eq!(wanted[1].history, History::Seconds(REQUESTS));
        assert_ne!(wanted[0].part, wanted[1].part);
        let demand = Demand { wanted, events_per_s: 0 };
        let author = Author::new(1);
        for (kind, tags, expected) in [
            (1, &[][..], true),
            (7, &[], false),
            (5, &[&["k", "1"][..]], true),
            (5, &[&["k", "7"]], false),
            (62, &[&["relay", "ALL_RELAYS"]], true),
        ] {
            assert_eq!(demand.takes(&author.sign(1, kind, tags, "")), expected, "{kind} {tags:?}");
        }
        let all = Filter::default();
        assert_eq!(Wanted::with_requests(&all, History::All, 7).len(), 1);
    }
}
