use std::process::ExitCode;

fn main() -> ExitCode {
    nostr_gateway::cli::main()
}
