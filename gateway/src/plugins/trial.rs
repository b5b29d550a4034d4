//! A plugin that is tried with events of a file, in the same sandbox as in a running gateway: same
//! scope, limits and capabilities, one instance, nobody else in the chain.

mod lines;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

pub use lines::{Arrival, Asked, LineError, Question, parse};

use super::{
    bindings::rotation::exports::nostr_gateway::plugin::rotation::Decision,
    budget::Budget,
    instance::{Failure, Instance},
    loader::Loader,
    lower::LoweredEvent,
    manifest::Manifest,
    plugin::Plugin,
    rotation::{self, RotationInstance},
    verdict::Verdict,
    worker,
};
use crate::{
    pipeline::{Context, Direction, RotationQuestion},
    protocol::{Reason, TopicName, VerifiedEvent},
};

/// The plugin, and the instance that is asked.
pub struct Trial {
    plugin: Arc<Plugin>,
    instance: Option<Instance>,
    budget: Duration,
    /// Its engine's clock ends calls that run too long.
    _loader: Loader,
}

/// What came of a question.
#[derive(Debug)]
pub struct Answer {
    pub told: Told,
    /// How long the call took; nothing when there was none.
    pub took: Option<Duration>,
}

#[derive(Debug)]
pub enum Told {
    /// It is not in the plugin's scope.
    NotAsked,
    Accept,
    Reject(Option<Reason>),
    ShadowReject,
    Route(Vec<TopicName>),
    Keep,
    Rotate {
        grace: u32,
        exclude: Vec<String>,
    },
    Failed(Failure),
}

impl Told {
    /// The verdict, in one word.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotAsked => "not-asked",
            Self::Accept => "accept",
            Self::Reject(_) => "reject",
            Self::ShadowReject => "shadow-reject",
            Self::Route(_) => "route",
            Self::Keep => "keep",
            Self::Rotate { .. } => "rotate",
            Self::Failed(_) => "failed",
        }
    }

    /// What it says beside that, on one line; empty for nothing.
    pub fn detail(&self) -> String {
        match self {
            Self::NotAsked | Self::Accept | Self::ShadowReject | Self::Keep => String::new(),
            Self::Reject(reason) => reason.as_ref().map(ToString::to_string).unwrap_or_default(),
            Self::Route(topics) => {
                topics.iter().map(TopicName::as_str).collect::<Vec<_>>().join(", ")
            }
            Self::Rotate { grace, exclude } if exclude.is_empty() => format!("grace {grace} s"),
            Self::Rotate { grace, exclude } => {
                format!("grace {grace} s, without {}", exclude.join(", "))
            }
            Self::Failed(failure) => failure.to_string(),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = self.detail();
        let space = if detail.is_empty() { "" } else { " " };
        write!(f, "{}{space}{detail}", self.name())
    }
}

impl Trial {
    pub(super) fn new(
        loader: Loader,
        plugin: Arc<Plugin>,
        instance: Option<Instance>,
        budget: Duration,
    ) -> Self {
        Self { plugin, instance, budget, _loader: loader }
    }

    pub fn manifest(&self) -> &Manifest {
        &self.plugin.manifest
    }

    /// Asks. Runs guest code: never on an async worker.
    pub fn ask(&mut self, question: &Question) -> Answer {
        match question {
            Question::Event { event, arrival } => self.ask_about(event, arrival),
            Question::Visit(topic) => self.ask_about_visit(topic),
            Question::Rotation(question) => self.ask_about_rotation(question),
        }
    }

    fn ask_about(&mut self, event: &VerifiedEvent, arrival: &Arrival) -> Answer {
        let scope = &self.manifest().applies_to;
        let direction = arrival.direction();
        let mut topics = arrival.topics.clone();
        if !scope.covers(direction, event.kind, &arrival.origin, &topics) {
            return Answer { told: Told::NotAsked, took: None };
        }
        if direction == Direction::ToTopics && !scope.topics.is_empty() {
            topics.retain(|topic| scope.topics.contains(topic));
        }
        let context = Context {
            direction,
            origin: &arrival.origin,
            topics: &topics,
            received_at: arrival.received_at,
        };
        let lowered = LoweredEvent::new(event, context.origin);
        let mut budget = Budget::new(self.budget);
        let began = Instant::now();
        let called = worker::call(
            &mut self.instance,
            &self.plugin,
            &lowered,
            &context,
            &topics,
            &mut budget,
        );
        let took = Some(began.elapsed());
        self.instance.take_if(|instance| !instance.is_alive());
        let told = match called {
            Ok(Verdict::Accept) => Told::Accept,
            Ok(Verdict::Reject(reason)) => Told::Reject(Some(reason)),
            Ok(Verdict::ShadowReject) => Told::ShadowReject,
            Ok(Verdict::Route(topics)) => Told::Route(topics),
            Err(failure) => Told::Failed(failure),
        };
        Answer { told, took }
    }

    fn ask_about_visit(&mut self, topic: &TopicName) -> Answer {
        let scope = &self.manifest().applies_to.topics;
        if !scope.is_empty() && !scope.contains(topic) {
            return Answer { told: Told::NotAsked, took: None };
        }
        let began = Instant::now();
        let asked =
            Instance::new(&self.plugin).and_then(|mut policy| policy.may_visit(topic.as_str()));
        let took = Some(began.elapsed());
        let told = match asked {
            Ok(true) => Told::Accept,
            Ok(false) => Told::Reject(None),
            Err(failure) => Told::Failed(failure),
        };
        Answer { told, took }
    }

    fn ask_about_rotation(&mut self, question: &RotationQuestion) -> Answer {
        let scope = &self.manifest().applies_to.topics;
        if !scope.is_empty() && !scope.contains(&question.name) {
            return Answer { told: Told::NotAsked, took: None };
        }
        let topic = rotation::lowered(question);
        let began = Instant::now();
        let decided =
            RotationInstance::new(&self.plugin).and_then(|mut policy| policy.decide(&topic));
        let took = Some(began.elapsed());
        let told = match decided {
            Ok(Decision::Keep) => Told::Keep,
            Ok(Decision::Rotate(plan)) => Told::Rotate { grace: plan.grace, exclude: plan.exclude },
            Err(failure) => Told::Failed(failure),
        };
        Answer { told, took }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::plugins::{Services, install::Package, manifest::World};

    const PLUGINS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins");

    /// A folder with this component of the fixtures and this manifest.
    fn trial(component: &str, manifest: &str) -> Trial {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("plugin.toml"), manifest).unwrap();
        let from = Path::new(PLUGINS).join(component);
        fs::copy(from, dir.path().join("x.wasm")).unwrap();
        let package = Package::read(dir.path()).unwrap();
        package.trial(Services::none().unwrap()).unwrap()
    }

    fn manifest(world: &str, more: &str) -> String {
        format!(
            "id = \"x\"\nversion = \"1.0.0\"\nworld = \"{world}\"\nfile = \"x.wasm\"\n\
             capabilities = [\"log\", \"config\"{more}"
        )
    }

    fn told(trial: &mut Trial, text: &str) -> Vec<String> {
        let asked = parse(text, trial.manifest().world).unwrap();
        asked.iter().map(|asked| trial.ask(&asked.question).told.to_string()).collect()
    }

    #[test]
    fn a_filter_says_what_it_says_in_the_gateway() {
        let manifest = manifest(
            "event-filter",
            ", \"clock\"]\n[limits]\ntime_ms = 40\n[applies_to]\nkinds = [1]\n\
             directions = [\"in\", \"to-topics\"]",
        );
        let mut trial = trial("fixtures/fixtures.wasm", &manifest);
        let text = r#"
            {"kind":1,"content":"hello"}
            {"kind":7,"content":"reject:not asked"}
            {"kind":1,"content":"reject:no\nno"}
            {"kind":1,"content":"route:cats,dogs"}
            {"event":{"kind":1,"content":"out:reject:stay"},"direction":"to-topics","topics":["cats"]}
            {"kind":1,"content":"loop"}
            {"kind":1,"content":"reject:again"}
        "#;
        let told = told(&mut trial, text);
        assert_eq!(
            told[..5],
            [
                "accept",
                "not-asked",
                "reject blocked: no no",
                "route cats, dogs",
                "reject blocked: topics [\"cats\"] stay",
            ]
        );
        assert_eq!(told[5..], ["failed it ran longer than 40 ms", "reject blocked: again"]);
    }

    #[test]
    fn policies_are_asked_their_own_questions() {
        let manifest_of_topics = manifest("topic-policy", "]");
        let mut topics = trial("fixtures-topics/fixtures-topics.wasm", &manifest_of_topics);
        let text = "{\"kind\":1,\"content\":\"to:cats\"}\n{\"kind\":1}\n{\"visit\":\"open\"}\n\
                    {\"visit\":\"shut\"}\n{\"visit\":\"panic\"}";
        let said = told(&mut topics, text);
        assert_eq!(said[..4], ["route cats", "accept", "accept", "reject"]);
        assert!(said[4].starts_with("failed it trapped: "), "{said:?}");

        let manifest =
            manifest("secret-rotation", "]\n[config]\nmax_age = 100\ndrop_unseen_after = 50");
        let mut rotation = trial("rotate-by-age/rotate-by-age.wasm", &manifest);
        let text = "{\"topic\":\"t\",\"since\":10,\"now\":20}\n{\"topic\":\"t\",\"since\":10,\
                    \"now\":200,\"members\":[{\"id\":\"gone\",\"since\":1}]}";
        assert_eq!(told(&mut rotation, text), ["keep", "rotate grace 600 s, without gone"]);
        assert_eq!(rotation.manifest().world, World::SecretRotation);
    }
}
