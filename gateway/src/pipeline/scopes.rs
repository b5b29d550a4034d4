//! Which plugins judge the events of a stream from or to other relays.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;

use super::{Context, Direction, Origin};

/// The streams that have plugins of their own. Cheap to clone; all clones see the same.
#[derive(Clone, Default, Debug)]
pub struct StreamScopes(Arc<ArcSwap<Scopes>>);

type Scopes = BTreeMap<Arc<str>, Arc<[String]>>;

impl StreamScopes {
    /// From here on these plugins alone judge the stream's events; without a list, all that apply.
    pub fn set(&self, stream: &Arc<str>, plugins: Option<&[String]>) {
        if plugins.is_none() && !self.0.load().contains_key(stream) {
            return;
        }
        self.0.rcu(|scopes| {
            let mut scopes = Scopes::clone(scopes);
            match plugins {
                Some(plugins) => scopes.insert(stream.clone(), plugins.into()),
                None => scopes.remove(stream),
            };
            scopes
        });
    }

    /// The ids of the plugins that alone judge events of this stream.
    pub fn of(&self, stream: &str) -> Option<Arc<[String]>> {
        self.0.load().get(stream).cloned()
    }

    /// The same for an event: of the stream that it is about to go out by, or else came by.
    pub fn of_event(&self, context: &Context<'_>) -> Option<Arc<[String]>> {
        match (context.direction, context.origin) {
            (Direction::ToUpstream(stream), _) => self.of(stream),
            (_, Origin::Upstream { stream, .. }) => self.of(stream),
            _ => None,
        }
    }
}
