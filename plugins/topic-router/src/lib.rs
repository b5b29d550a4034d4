//! Says to which topics events go, by rules about their kind, author and tags.

mod rules;

use nostr_gateway_plugin::{Context, Event, config, export_topic_policy, log, topics::TopicPolicy};

use rules::{Rules, Settings};

struct TopicRouter(Rules);

impl TopicPolicy for TopicRouter {
    fn init() -> Result<Self, String> {
        let rules = Rules::new(Settings {
            rules: config::optional("rules")?.unwrap_or_default(),
            mode: config::optional("match")?.unwrap_or_default(),
            otherwise: config::optional("else")?,
            keep: config::optional("keep")?.unwrap_or(true),
            visits: config::optional("visits")?,
        })?;
        log::debug(&rules.to_string());
        Ok(Self(rules))
    }

    fn topics(&mut self, event: Event, context: Context) -> Option<Vec<String>> {
        self.0.topics(&event, context.topics)
    }

    fn may_visit(&mut self, topic: String) -> bool {
        self.0.may_visit(&topic)
    }
}

export_topic_policy!(TopicRouter);
