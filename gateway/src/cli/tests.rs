use clap::CommandFactory;

use super::*;

/// The help of every subcommand, one after the other.
fn help() -> String {
    fn add(command: &mut clap::Command, path: &str, text: &mut String) {
        text.push_str(&format!("$ {path} --help\n{}\n", command.render_long_help()));
        let names: Vec<String> =
            command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        for name in names.iter().filter(|name| *name != "help") {
            let sub = command.find_subcommand_mut(name).unwrap();
            add(sub, &format!("{path} {name}"), text);
        }
    }
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut text = String::new();
    add(&mut command, "nostr-gateway", &mut text);
    text
}

/// Run with `UPDATE_SNAPSHOTS=1` to write the file anew after a change that is meant.
#[test]
fn the_help_is_the_one_that_was_reviewed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/help.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, help()).unwrap();
    }
    let reviewed = std::fs::read_to_string(path).unwrap();
    assert!(help() == reviewed, "--help changed; it is now:\n{}", help());
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn global_flags_stand_before_or_behind_the_subcommand() {
    for line in [
        ["nostr-gateway", "--config", "a.toml", "--data-dir", "d", "config", "show"].as_slice(),
        &["nostr-gateway", "config", "--data-dir", "d", "show", "--config", "a.toml"],
        &["nostr-gateway", "run", "--config", "a.toml", "--data-dir", "d"],
    ] {
        let cli = Cli::try_parse_from(line).unwrap();
        assert_eq!(cli.places.config, Some(PathBuf::from("a.toml")), "{line:?}");
        assert_eq!(cli.places.data_dir, Some(PathBuf::from("d")), "{line:?}");
    }
}

#[test]
fn flags_can_be_repeated() {
    let line = ["nostr-gateway", "run", "--topic", "a", "--topic", "b", "--upstream", "wss://x"];
    let Command::Run(args) = Cli::try_parse_from(line).unwrap().command else { panic!() };
    let flags = Flags::from(args.overrides);
    assert_eq!(flags.topics, ["a", "b"]);
    assert_eq!(flags.upstreams, ["wss://x"]);
}
