use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::build::BuildArgs;
use crate::commands::run_component::RunComponentArgs;
use crate::new::NewArgs;

/// A serverless host for WebAssembly plugins: upload components, run them as steps of pipelines over HTTP and Kafka.
#[derive(Debug, Parser)]
#[command(name = "stepwell", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How client commands reach the host.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClientArgs {
    /// Address of the host's admin listener
    #[arg(
        long,
        global = true,
        env = "STEPWELL_URL",
        default_value = "http://127.0.0.1:8081",
        help_heading = "Client options"
    )]
    pub(crate) url: String,
    /// Token for the admin listener
    #[arg(
        long,
        global = true,
        env = "STEPWELL_TOKEN",
        hide_env_values = true,
        help_heading = "Client options"
    )]
    pub(crate) token: Option<String>,
    /// Certificates (PEM) to trust in place of the system's, when the host's is of an authority of one's own
    #[arg(
        long,
        global = true,
        env = "STEPWELL_CA",
        value_name = "FILE",
        help_heading = "Client options"
    )]
    pub(crate) ca: Option<PathBuf>,
    /// Namespace that the command works in [default: default]
    #[arg(
        long,
        global = true,
        env = "STEPWELL_NAMESPACE",
        value_parser = in_path,
        help_heading = "Client options"
    )]
    pub(crate) namespace: Option<String>,
    /// Print one JSON value on stdout, and errors as problem+json
    #[arg(long, global = true, help_heading = "Client options")]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the host
    Serve(ServeArgs),
    /// Upload, list and remove plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Apply, list, roll back and remove pipelines
    #[command(subcommand)]
    Pipeline(PipelineCommand),
    /// Send one event through a pipeline and print its reply
    Invoke(InvokeArgs),
    /// List models and their signatures
    #[command(subcommand)]
    Model(ModelCommand),
    /// Show what plugins and runs have logged
    Logs(LogsArgs),
    /// Make, list and remove namespaces, and set their quotas
    #[command(subcommand)]
    Namespace(NamespaceCommand),
    /// Make, list and revoke tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Show who changed what, the newest first
    Audit(AuditArgs),
    /// Run one component by itself: serve an HTTP function, or run a command
    RunComponent(RunComponentArgs),
    /// Make a new plugin project
    New(NewArgs),
    /// Build a plugin project into a component
    Build(BuildArgs),
    /// Check the configuration and everything it names
    Doctor(DoctorArgs),
}

/// Options of `serve`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServeArgs {
    /// Configuration file (default: ./stepwell.toml if it is there)
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Directory for embedded stores and caches
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address of the data listener; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Address of the admin listener; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin_listen: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Upload a component
    Push(PushArgs),
    /// List plugins and their versions
    List,
    /// Show a plugin, or one of its versions
    Show {
        /// NAME or NAME@VERSION
        #[arg(value_parser = in_path)]
        plugin: String,
    },
    /// Remove a version that no pipeline uses
    Rm {
        /// NAME@VERSION
        #[arg(value_parser = in_path)]
        plugin: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct PushArgs {
    /// The component
    pub(crate) file: PathBuf,
    /// Name of the plugin (default: the component's own)
    #[arg(long, value_parser = in_path)]
    pub(crate) name: Option<String>,
    /// Version (default: the component's own)
    // `--version` of the program itself is only there without a command.
    #[arg(long, value_parser = in_path)]
    pub(crate) version: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PipelineCommand {
    /// Apply pipeline documents; all are checked before the first is applied
    Apply {
        /// Files, or directories of .yaml, .yml and .json files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Validate only
        #[arg(long)]
        dry_run: bool,
    },
    /// List pipelines
    List,
    /// Show a pipeline's document and what its steps are pinned to
    Show {
        /// The pipeline
        #[arg(value_parser = in_path)]
        name: String,
        /// An earlier revision
        #[arg(long)]
        revision: Option<u64>,
    },
    /// List a pipeline's revisions
    History {
        /// The pipeline
        #[arg(value_parser = in_path)]
        name: String,
    },
    /// Go back to an earlier revision, by a new one
    Rollback {
        /// The pipeline
        #[arg(value_parser = in_path)]
        name: String,
        /// The revision to go back to (default: the previous one)
        revision: Option<u64>,
    },
    /// Remove a pipeline
    Rm {
        /// The pipeline
        #[arg(value_parser = in_path)]
        name: String,
    },
    /// Print the JSON Schema of pipeline documents
    Schema,
}

#[derive(Args, Debug)]
pub(crate) struct InvokeArgs {
    /// The pipeline
    #[arg(value_parser = in_path)]
    pub(crate) pipeline: String,
    /// The event's data: a text, @FILE, or - for standard input
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) data: Option<String>,
    /// Media type of the data (default: guessed from the file's name, else application/json when it is JSON)
    #[arg(long)]
    pub(crate) content_type: Option<String>,
    /// The event's type
    #[arg(long = "type")]
    pub(crate) event_type: Option<String>,
    /// The event's subject
    #[arg(long)]
    pub(crate) subject: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// List models, their versions and states
    List,
    /// Show a model's versions and signatures
    Show {
        /// The model
        #[arg(value_parser = in_path)]
        name: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// Go on with what is logged from now on
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only this pipeline
    #[arg(long)]
    pub(crate) pipeline: Option<String>,
    /// Only this step
    #[arg(long)]
    pub(crate) step: Option<String>,
    /// This level and those above it
    #[arg(long, value_parser = ["trace", "debug", "info", "warn", "error"])]
    pub(crate) level: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NamespaceCommand {
    /// List the namespaces that the token has a role in
    List,
    /// Show a namespace's quotas and what it keeps
    Show {
        /// The namespace
        #[arg(value_parser = in_path)]
        name: String,
    },
    /// Make a namespace, or change the quotas that are named; 'none' lifts one
    Set(SetNamespaceArgs),
    /// Remove a namespace that holds nothing
    Rm {
        /// The namespace
        #[arg(value_parser = in_path)]
        name: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct SetNamespaceArgs {
    /// The namespace
    #[arg(value_parser = in_path)]
    pub(crate) name: String,
    /// Plugin versions that it may keep
    #[arg(long, value_name = "NUMBER|none")]
    pub(crate) plugins: Option<String>,
    /// Size of all components that it keeps, such as 1GiB
    #[arg(long, value_name = "SIZE|none")]
    pub(crate) bytes: Option<String>,
    /// Pipelines that it may keep
    #[arg(long, value_name = "NUMBER|none")]
    pub(crate) pipelines: Option<String>,
    /// Runs that may start in a second, on each host
    #[arg(long, value_name = "NUMBER|none")]
    pub(crate) runs_per_second: Option<String>,
    /// Runs at once, on each host
    #[arg(long, value_name = "NUMBER|none")]
    pub(crate) concurrent_runs: Option<String>,
    /// CPU seconds that its guests may use in a minute, on each host
    #[arg(long, value_name = "NUMBER|none")]
    pub(crate) cpu_seconds_per_minute: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token for the namespace, and print it: it cannot be shown again
    Create(CreateTokenArgs),
    /// List tokens, without their values
    List,
    /// Revoke a token
    Revoke {
        /// The token's id
        #[arg(value_parser = in_path)]
        id: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CreateTokenArgs {
    /// What its bearer may do: read, run pipelines, both and change plugins and pipelines, or everything
    #[arg(long, value_parser = ["viewer", "invoker", "deployer", "operator"])]
    pub(crate) role: String,
    /// For every namespace, those to come among them; an operator's always is
    #[arg(long)]
    pub(crate) all_namespaces: bool,
    /// How long it is valid, such as 90d or 12h (default: until it is revoked)
    #[arg(long, value_name = "TIME")]
    pub(crate) expires: Option<String>,
    /// What people call it (default: its role)
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct AuditArgs {
    /// Not older than this: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 24h
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// At most this many records, 1 to 500
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: u32,
}

/// Options of `doctor`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DoctorArgs {
    /// Configuration file (default: ./stepwell.toml if it is there)
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Directory for embedded stores and caches
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
}

/// What becomes a part of a request's path. Whether it names anything the host says, but it must not lead elsewhere:
/// `../../b/pipelines/p` would be a pipeline of another namespace.
fn in_path(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+@".contains(c);
    let is_step = |part: &str| part == "." || part.contains("..");
    if text.is_empty() || !text.chars().all(fits) || text.split('@').any(is_step) {
        return Err("letters, digits and - _ . + @ name things on a host".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_out_of_their_place() {
        for name in ["p", "decode@1.0.0-rc.1+b", "A_b", "t763ae369ad1c2e96"] {
            assert_eq!(in_path(name).unwrap(), name);
        }
        for not in [
            "", ".", "..", "../x", "a/b", "a@..", "a@.", "p?x=y", "p#x", "%2e%2e", "a\\b", "a b",
            "a\n", "é",
        ] {
            assert!(in_path(not).is_err(), "{not:?}");
        }
        let elsewhere = "../../b/pipelines/p";
        for command in [
            &["pipeline", "rm"][..],
            &["pipeline", "show"],
            &["pipeline", "history"],
            &["pipeline", "rollback"],
            &["plugin", "show"],
            &["plugin", "rm"],
            &["plugin", "push", "file", "--name"],
            &["plugin", "push", "file", "--version"],
            &["invoke"],
            &["model", "show"],
            &["namespace", "show"],
            &["namespace", "set"],
            &["namespace", "rm"],
            &["token", "revoke"],
            &["logs", "--namespace"],
        ] {
            let parsed =
                |last| Cli::try_parse_from(["stepwell"].iter().chain(command).chain([&last]));
            assert!(parsed("p").is_ok(), "{command:?}");
            let error = parsed(elsewhere).unwrap_err();
            assert_eq!(
                error.kind(),
                clap::error::ErrorKind::ValueValidation,
                "{command:?}"
            );
        }
    }
}
