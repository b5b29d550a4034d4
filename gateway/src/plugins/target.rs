//! A log target for each plugin, `plugin::ID`, so that `RUST_LOG` can tell them apart. The macros of
//! `tracing` only know targets that stand in the source.

use std::sync::OnceLock;

use tracing::{
    Event, Level, Metadata,
    callsite::{Callsite, Identifier},
    dispatcher,
    field::{FieldSet, Value},
    level_filters::LevelFilter,
    metadata::Kind,
    subscriber::Interest,
};

/// In the order of [`Target::site`].
const LEVELS: [Level; 5] = [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR];

/// The places from which a plugin's lines come, as far as `tracing` is concerned. It wants them to
/// live for ever, so make one for each id, and no more.
#[derive(Clone, Copy)]
pub struct Target {
    sites: &'static [Site; 5],
}

struct Site(OnceLock<Metadata<'static>>);

impl Callsite for Site {
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        self.0.get().expect("it is set before anything else can see the site")
    }
}

impl Target {
    pub fn new(id: &str) -> Self {
        let name: &'static str = Box::leak(format!("plugin::{id}").into_boxed_str());
        let sites: &'static [Site; 5] = Box::leak(Box::new([const { Site(OnceLock::new()) }; 5]));
        for (site, level) in sites.iter().zip(LEVELS) {
            let fields = FieldSet::new(&["message"], Identifier(site));
            let metadata =
                Metadata::new("plugin", name, level, None, None, Some(name), fields, Kind::EVENT);
            let _ = site.0.set(metadata);
        }
        Self { sites }
    }

    /// Whether anybody reads lines of this level.
    pub fn is_enabled(&self, level: Level) -> bool {
        let metadata = self.site(level);
        level <= LevelFilter::current() && dispatcher::get_default(|log| log.enabled(metadata))
    }

    pub fn write(&self, level: Level, message: &str) {
        let metadata = self.site(level);
        let Some(field) = metadata.fields().field("message") else { return };
        let message = format_args!("{message}");
        let values = [(&field, Some(&message as &dyn Value))];
        let values = metadata.fields().value_set(&values);
        dispatcher::get_default(|log| {
            if log.enabled(metadata) {
                log.event(&Event::new(metadata, &values));
            }
        });
    }

    fn site(&self, level: Level) -> &'static Metadata<'static> {
        let at = LEVELS.iter().position(|known| *known == level).unwrap_or_default();
        self.sites[at].0.get().expect("all were set when it was made")
    }
}
