//! Programs in the chain beside components.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::{
    pipeline::{Answer, Judged},
    protocol::Reason,
};

/// A program in the shell that answers every event with this.
fn script(answer: &str) -> String {
    format!(
        "#!/bin/sh\nwhile read -r line; do\n\
         id=$(printf %s \"$line\" | sed 's/.*\"id\":\"\\([0-9a-f]*\\)\".*/\\1/')\n\
         printf '{{\"id\":\"%s\",{answer}}}\\n' \"$id\"\ndone\n"
    )
}

const ACCEPT: &str = r#""action":"accept""#;
const REJECT: &str = r#""action":"reject","msg":"the program says no""#;

impl Plugins {
    fn program(self, id: &str, script: &str, more: &str) -> Self {
        let manifest = format!(
            "id = \"{id}\"\nversion = \"1.0.0\"\nworld = \"event-filter\"\n\
             program = [\"./policy.sh\"]\n{more}"
        );
        let plugins = self.folder(id, &manifest, b"");
        let file = plugins.0.path().join(id).join("policy.sh");
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        plugins
    }
}

#[test]
fn a_program_has_its_place_in_the_chain() {
    let mut plugins = Plugins::new()
        .fixture("a", "order = 1")
        .program("b", &script(REJECT), "order = 2\napplies_to.topics = [\"guarded\"]")
        .fixture("c", "order = 3\napplies_to.kinds = [7]\n[config]\nguard = true")
        .load();
    // What the one before chose, it sees; what it does not judge, the one after does.
    assert_eq!(plugins.answer("route:guarded"), "blocked: the program says no");
    assert_eq!(plugins.ask("route:open"), Decision::Route(vec![topic("open")]));
    let guarded = plugins.ask_with(&event(7, "fine"), &client(), &[]);
    assert!(matches!(guarded, Decision::Reject(reason) if reason.to_string().contains("guarded")));
    let calls = plugins.chain.describe("b", std::path::Path::new("/nonexistent")).unwrap();
    assert_eq!(calls["calls"]["reject"], 1);

    // A route stays one after a program that accepts.
    let mut plugins = Plugins::new()
        .fixture("a", "order = 1")
        .program("b", &script(ACCEPT), "order = 2")
        .program("c", &script(ACCEPT), "order = 3")
        .load();
    assert_eq!(plugins.ask("route:open"), Decision::Route(vec![topic("open")]));
    assert_eq!(plugins.answer("reject:no"), "blocked: no");
}

#[test]
fn a_program_that_fails_refuses_or_passes_as_its_manifest_says() {
    for (on_failure, decision) in
        [("stop", Decision::Reject(Reason::error("plugin a failed"))), ("pass", Decision::Accept)]
    {
        let more = format!("on_failure = \"{on_failure}\"");
        let mut plugins =
            Plugins::new().program("a", &script(r#""action":"perhaps""#), &more).load();
        assert_eq!(plugins.ask("x"), decision);
        assert_eq!(plugins.traps(), 1);
    }
    let broken = Plugins::new().program("a", "#!/bin/sh\necho 'not here' >&2; exit 2", "").load();
    assert_eq!(broken.cause("a"), "it did not start: it ended (exit status: 2): not here");
    let plugins = Plugins::new().program("a", "", "");
    let file = plugins.0.path().join("a/policy.sh");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let cause = plugins.load().cause("a");
    assert!(cause.starts_with("./policy.sh: it is not executable: chmod +x"), "{cause}");
}

/// What waited for a program while plugins changed is judged by those it began with.
#[test]
fn an_event_that_is_aside_is_judged_by_one_generation() {
    let say = |word: &str| format!("order = 2\n[config]\nsay = \"{word}\"");
    let plugins =
        Plugins::new().program("a", &script(ACCEPT), "order = 1").fixture("b", &say("former"));
    let data = TempDir::new().unwrap();
    fs::write(data.path().join("grants.toml"), "[a]\ngrant = [\"program\"]").unwrap();
    let mut living = life::Living::with(plugins, data, 0);
    let (event, origin) = (event(1, "say"), client());
    let (direction, received_at) = (Direction::In, 1_700_000_001);
    let context = Context { direction, origin: &origin, topics: &[], received_at };
    let Judged::Asks(question) = living.worker.judge(&event, &context) else {
        panic!("a program is asked");
    };
    let (answered, answer) = std::sync::mpsc::sync_channel::<Answer>(1);
    question.put(Box::new(move |answer| answered.send(answer).unwrap()));
    let answer = answer.recv().unwrap();

    living.rewrite("b", &say("later"));
    living.look("b");
    assert_eq!(living.answer("say"), "blocked: later");
    match living.worker.resume(&event, &context, answer) {
        Judged::Decided(Decision::Reject(reason)) => {
            assert_eq!(reason.to_string(), "blocked: former");
        }
        _ => panic!("it is refused"),
    }
    assert_eq!(living.answer("say"), "blocked: later");
}

#[test]
fn a_program_that_is_not_granted_is_not_started() {
    let dir = TempDir::new().unwrap();
    let started = dir.path().join("started");
    let script = format!("#!/bin/sh\ntouch {}\ncat >/dev/null", started.display());
    let living = life::Living::new(Plugins::new().program("a", &script, ""), 0);
    assert!(matches!(living.state("a"), PluginState::Broken { .. }));
    assert!(!started.exists());
    living.grant("[a]\ngrant = [\"program\"]");
    assert_eq!(living.state("a"), PluginState::Ready { failures: 0 });
    assert!(started.exists());
}
