//! Environment variables that look like settings but are none: misspelt names are reported, never refused.

use std::collections::BTreeSet;

use clap::Command;
use strsim::levenshtein;

/// What the names of our variables begin with.
const PREFIX: &str = "GHOSTSERVE_";

/// Variables that are read when the program is built. They may still be set when it runs.
const BUILD_VARIABLES: [&str; 1] = ["GHOSTSERVE_BUILD_REVISION"];

/// Number of wrong letters up to which a name counts as misspelt.
const MAX_WRONG_LETTERS: usize = 3;

/// A variable that no setting reads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnknownVariable {
    /// Its name.
    pub(super) name: String,
    /// The variable that was probably meant.
    pub(super) nearest: Option<String>,
}

impl UnknownVariable {
    /// What is wrong and what to do.
    pub(super) fn warning(&self) -> String {
        let name = &self.name;
        match &self.nearest {
            Some(nearest) => format!("the environment variable {name} is not a setting: did you mean {nearest}?"),
            None => format!(
                "the environment variable {name} is not a setting and has no effect; `ghostserve serve --help` has all"
            ),
        }
    }
}

/// The variables of this process that begin like ours and that no argument of `command` or its subcommands reads.
pub(super) fn unknown_variables(command: &Command) -> Vec<UnknownVariable> {
    let known = known_variables(command);
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().unwrap_or_default())));
    unknown_among(variables, &known)
}

fn known_variables(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|argument| argument.get_env());
    let mut known: BTreeSet<_> = own.map(|name| name.to_string_lossy().into_owned()).collect();
    known.extend(BUILD_VARIABLES.map(str::to_owned));
    for subcommand in command.get_subcommands() {
        known.append(&mut known_variables(subcommand));
    }
    known
}

fn unknown_among(variables: impl Iterator<Item = (String, String)>, known: &BTreeSet<String>) -> Vec<UnknownVariable> {
    let is_ours = |name: &str| name.starts_with(PREFIX) && name != PREFIX;
    let mut unknown: Vec<_> = variables
        .filter(|(name, value)| is_ours(name) && !known.contains(name) && !is_service_link(name, value))
        .map(|(name, _)| UnknownVariable { nearest: nearest(&name, known), name })
        .collect();
    unknown.sort_by(|a, b| a.name.cmp(&b.name));
    unknown
}

/// Whether Kubernetes has set the variable. It sets several for every Service: for one that is called `ghostserve`,
/// they begin like ours.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_port_part = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| is_port_part(rest))
        || (name.ends_with("_PORT") && value.contains("://"))
}

fn nearest(name: &str, known: &BTreeSet<String>) -> Option<String> {
    let distances = known.iter().map(|candidate| (levenshtein(name, candidate), candidate));
    let (distance, candidate) = distances.min()?;
    // In a short name, three other letters make another word.
    let bound = MAX_WRONG_LETTERS.min((name.len() - PREFIX.len()) / 2);
    (distance <= bound).then(|| candidate.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(variables: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
        let known = ["GHOSTSERVE_LOG", "GHOSTSERVE_MAX_BATCH", "GHOSTSERVE_LISTEN"].map(str::to_owned).into();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        unknown_among(variables, &known).into_iter().map(|found| (found.name, found.nearest)).collect()
    }

    #[test]
    fn a_misspelt_name_gets_the_nearest_one() {
        assert_eq!(
            unknown(&[("GHOSTSERVE_MAXBATCH", "4"), ("GHOSTSERVE_LISTEN", "80"), ("PATH", "/bin")]),
            [("GHOSTSERVE_MAXBATCH".to_owned(), Some("GHOSTSERVE_MAX_BATCH".to_owned()))]
        );
        assert_eq!(unknown(&[("GHOSTSERVE_COLOUR", "1")]), [("GHOSTSERVE_COLOUR".to_owned(), None)]);
        assert_eq!(unknown(&[("GHOSTSERVE_A", "1")]), [("GHOSTSERVE_A".to_owned(), None)]);
    }

    #[test]
    fn variables_that_kubernetes_sets_for_services_are_no_mistakes() {
        for (name, value) in [
            ("GHOSTSERVE_SERVICE_HOST", "10.0.0.1"),
            ("GHOSTSERVE_SERVICE_PORT_HTTP", "80"),
            ("GHOSTSERVE_PORT", "tcp://10.0.0.1:80"),
            ("GHOSTSERVE_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("GHOSTSERVE_CANARY_PORT", "tcp://10.0.0.1:80"),
        ] {
            assert_eq!(unknown(&[(name, value)]), []);
        }
        assert_eq!(unknown(&[("GHOSTSERVE_PORT", "8080")]).len(), 1);
    }
}
