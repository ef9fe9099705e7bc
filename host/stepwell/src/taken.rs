//! What starts each pipeline, and who takes what.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use stepwell_core::Name;
use stepwell_pipeline::{KnownPipeline, TriggerSpec};

use crate::ahead::Key;

/// The triggers of every current revision. A change asks who is in its way, and must not take longer the more there are.
#[derive(Default)]
pub(crate) struct Taken {
    pipelines: BTreeMap<Key, Arc<KnownPipeline>>,
    by_place: HashMap<String, BTreeSet<Key>>,
    /// Subscriptions in all namespaces, and in each that has any.
    subscriptions: usize,
    by_namespace: HashMap<Name, usize>,
}

impl Taken {
    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<KnownPipeline>> {
        self.pipelines.get(key)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.pipelines.keys()
    }

    pub(crate) fn insert(&mut self, key: Key, pipeline: KnownPipeline) {
        self.remove(&key);
        for trigger in &pipeline.triggers {
            let place = trigger.place(&key.0);
            self.by_place.entry(place).or_default().insert(key.clone());
        }
        let count = subscriptions(&pipeline);
        if count > 0 {
            self.subscriptions += count;
            *self.by_namespace.entry(key.0.clone()).or_default() += count;
        }
        self.pipelines.insert(key, Arc::new(pipeline));
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        let Some(old) = self.pipelines.remove(key) else {
            return;
        };
        for trigger in &old.triggers {
            let place = trigger.place(&key.0);
            if let Some(keys) = self.by_place.get_mut(&place) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_place.remove(&place);
                }
            }
        }
        let count = subscriptions(&old);
        self.subscriptions -= count;
        if let Some(all) = self.by_namespace.get_mut(&key.0) {
            *all -= count;
            if *all == 0 {
                self.by_namespace.remove(&key.0);
            }
        }
    }

    /// The other pipelines that may be in the way of these triggers.
    pub(crate) fn beside<'a>(
        &self,
        own: &Key,
        triggers: impl Iterator<Item = &'a TriggerSpec>,
    ) -> Vec<Arc<KnownPipeline>> {
        let places = triggers.filter_map(|trigger| self.by_place.get(&trigger.place(&own.0)));
        let keys: BTreeSet<&Key> = places.flatten().filter(|key| *key != own).collect();
        let known = keys.into_iter().filter_map(|key| self.pipelines.get(key));
        known.cloned().collect()
    }

    /// How many subscriptions there are beside those of one pipeline: of all namespaces, and of its own.
    pub(crate) fn subscriptions_beside(&self, own: &Key) -> (usize, usize) {
        let count = self.get(own).map_or(0, |own| subscriptions(own));
        let of_namespace = self.by_namespace.get(&own.0).copied();
        (
            self.subscriptions - count,
            of_namespace.unwrap_or_default() - count,
        )
    }
}

/// How many triggers of a pipeline are subscriptions.
pub(crate) fn subscriptions(pipeline: &KnownPipeline) -> usize {
    let triggers = pipeline.triggers.iter();
    triggers.filter(|trigger| trigger.is_kafka()).count()
}

#[cfg(test)]
mod tests {
    use stepwell_pipeline::Draft;

    use super::*;

    fn key(namespace: &str, name: &str) -> Key {
        (namespace.parse().unwrap(), name.parse().unwrap())
    }

    fn draft(triggers: &str) -> Draft {
        Draft::parse(&format!(
            "stepwell: 1\nname: p\ntriggers: [{triggers}]\nsteps: [{{id: a, plugin: b@1}}]\n"
        ))
    }

    fn known(key: &Key, triggers: &str) -> KnownPipeline {
        KnownPipeline {
            namespace: key.0.clone(),
            name: key.1.clone(),
            triggers: draft(triggers).triggers().cloned().collect(),
        }
    }

    #[test]
    fn only_those_in_the_way_are_found_and_all_of_them() {
        let mut taken = Taken::default();
        for (namespace, name, triggers) in [
            ("default", "a", "http: {method: POST, path: '/x/{y}'}"),
            ("default", "b", "http: {method: GET, path: '/x/z'}"),
            ("team", "c", "http: {method: POST, path: '/x/{y}'}"),
            ("team", "d", "kafka: {topics: [t, u], group: g}"),
            (
                "team",
                "e",
                "kafka: {topics: [t], group: other}}, {kafka: {topics: [u], group: other2}",
            ),
        ] {
            let key = key(namespace, name);
            let known = known(&key, &format!("{{{triggers}}}"));
            taken.insert(key, known);
        }
        let beside = |taken: &Taken, own: &Key, triggers: &str| {
            let draft = draft(&format!("{{{triggers}}}"));
            let found = taken.beside(own, draft.triggers());
            let names = found.iter().map(|one| one.name.as_str().to_owned());
            names.collect::<Vec<_>>().join(" ")
        };
        let new = key("default", "new");
        let same = "http: {method: PUT, path: '/x/{other}'}";
        assert_eq!(beside(&taken, &new, same), "a");
        assert_eq!(beside(&taken, &key("default", "a"), same), "");
        assert_eq!(beside(&taken, &key("team", "new"), same), "c");
        let both = "http: {method: GET, path: /x/z}}, {kafka: {topics: [v], group: g}";
        assert_eq!(beside(&taken, &new, both), "b d");
        assert_eq!(taken.subscriptions_beside(&key("team", "new")), (3, 3));
        assert_eq!(taken.subscriptions_beside(&key("team", "e")), (1, 1));
        assert_eq!(taken.subscriptions_beside(&new), (3, 0));
        // What a pipeline had before, and one that is gone, is in nobody's way.
        let a = key("default", "a");
        taken.insert(
            a.clone(),
            known(&a, "{http: {method: POST, path: /elsewhere}}"),
        );
        assert_eq!(beside(&taken, &new, same), "");
        taken.remove(&key("team", "e"));
        taken.remove(&key("team", "d"));
        taken.remove(&key("team", "d"));
        assert_eq!(beside(&taken, &new, both), "b");
        assert_eq!(taken.subscriptions_beside(&key("team", "x")), (0, 0));
        assert_eq!(taken.keys().count(), 3);
        assert!(taken.by_namespace.is_empty() && taken.by_place.len() == 3);
    }
}
