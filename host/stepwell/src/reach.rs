//! Which namespaces may use which of what all of them share: the operator's bindings, and the names of a Kafka cluster.

use std::collections::{BTreeMap, BTreeSet};

use stepwell_core::{BindingKind, Name};
use stepwell_pipeline::{Draft, KafkaOwners, PipelineSpec, TriggerSpec};

/// What is not for everybody.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    bindings: BTreeMap<(BindingKind, String), BTreeSet<Name>>,
    pub(crate) kafka: KafkaOwners,
}

impl Reach {
    /// A binding is for these namespaces alone.
    pub(crate) fn confine(&mut self, kind: BindingKind, binding: &str, namespaces: BTreeSet<Name>) {
        self.bindings.insert((kind, binding.to_owned()), namespaces);
    }

    /// Whether the pipelines of a namespace may be granted a binding.
    pub(crate) fn includes(&self, namespace: &Name, kind: BindingKind, binding: &str) -> bool {
        let confined = self.bindings.get(&(kind, binding.to_owned()));
        confined.is_none_or(|namespaces| namespaces.contains(namespace))
    }

    /// The bindings that are for some namespaces alone, with these.
    pub(crate) fn confined(&self) -> impl Iterator<Item = (String, &BTreeSet<Name>)> {
        let shown = |(kind, name): &(BindingKind, String)| format!("{kind}/{name}");
        self.bindings
            .iter()
            .map(move |(binding, namespaces)| (shown(binding), namespaces))
    }

    /// What a document wants that is there and not for its namespace, each once: the operator is told, whoever applies it is not.
    pub(crate) fn withheld(&self, namespace: &Name, draft: &Draft) -> BTreeSet<String> {
        let bindings = draft
            .bindings()
            .filter(|(kind, name)| !self.includes(namespace, *kind, name))
            .map(|(kind, name)| format!("{kind}/{name}"));
        let triggers = draft.triggers().filter_map(|trigger| match trigger {
            TriggerSpec::Kafka(trigger) => Some(trigger),
            TriggerSpec::Http(_) => None,
        });
        let names = triggers.flat_map(|trigger| self.kafka.refused(namespace, trigger));
        bindings
            .chain(names.map(|(_, name)| format!("kafka/{name}")))
            .collect()
    }

    /// Finds what a pipeline was allowed when it was applied, and is not any more.
    pub(crate) fn check(&self, namespace: &Name, spec: &PipelineSpec) -> Result<(), String> {
        let granted = spec.steps.iter().flat_map(|step| step.grants.iter());
        for (kind, _, grant) in granted {
            let binding = &grant.binding;
            if !self.includes(namespace, kind, binding) {
                return Err(format!(
                    "[bindings.{kind}.{binding}] is not for namespace '{namespace}': its 'namespaces' are others"
                ));
            }
        }
        for trigger in &spec.triggers {
            if let TriggerSpec::Kafka(trigger) = trigger
                && let Some((_, name)) = self.kafka.refused(namespace, trigger).next()
            {
                return Err(format!(
                    "the Kafka topic or group '{name}' is not for namespace '{namespace}': [kafka.owners] has another"
                ));
            }
        }
        Ok(())
    }
}
