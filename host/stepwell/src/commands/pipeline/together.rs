//! Documents that are applied together against each other: the host checks each against what it has, and has none of them yet.

use std::path::Path;

use stepwell_pipeline::Draft;

/// One of several documents.
pub(super) struct Member<'a> {
    path: &'a Path,
    draft: Draft,
}

impl<'a> Member<'a> {
    pub(super) fn read(path: &'a Path, text: &str) -> Self {
        Self {
            path,
            draft: Draft::parse(text),
        }
    }
}

/// Every two of them that cannot both be applied, and why; each names both files.
pub(super) fn conflicts(members: &[Member<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    for (index, one) in members.iter().enumerate() {
        for other in members.iter().skip(index + 1) {
            let files = format!("{} and {}", one.path.display(), other.path.display());
            if let Some(name) = one.draft.name()
                && other.draft.name() == Some(name)
            {
                found.push(format!("{files} both are the pipeline '{name}'"));
                continue;
            }
            for trigger in one.draft.triggers() {
                let contended = other
                    .draft
                    .triggers()
                    .filter_map(|taken| trigger.contends_with(taken));
                found.extend(contended.map(|what| format!("{files} both have {what}")));
            }
        }
    }
    found
}

/// The conflicts as the host reports mistakes.
pub(super) fn problem(conflicts: &[String]) -> serde_json::Value {
    let code = stepwell_api::ErrorCode::InvalidPipeline;
    let errors: Vec<_> = conflicts
        .iter()
        .map(|message| serde_json::json!({"path": "", "message": message}))
        .collect();
    serde_json::json!({
        "type": format!("urn:stepwell:problem:{}", code.as_str()),
        "title": code.title(),
        "status": code.status().as_u16(),
        "code": code.as_str(),
        "detail": "the documents cannot be applied together: nothing was changed",
        "errors": errors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflicts_of(documents: &[(&str, &str)]) -> Vec<String> {
        let members: Vec<_> = documents
            .iter()
            .map(|(path, text)| Member::read(Path::new(path), text))
            .collect();
        conflicts(&members)
    }

    fn document(name: &str, trigger: &str) -> String {
        format!("stepwell: 1\nname: {name}\ntriggers: [{trigger}]\nsteps: [{{id: a, plugin: p}}]\n")
    }

    #[test]
    fn what_only_one_can_have_is_told_with_both_files() {
        let get = "http: {method: GET, path: '/x/{id}'}";
        let same = "http: {method: GET, path: '/x/{key}'}";
        let other_method = "http: {method: POST, path: '/x/{id}'}";
        let read = "kafka: {topics: [a, b], group: g, dead_letter: d}";
        let shared = "kafka: {topics: [b], group: g, dead_letter: d}";
        let other_group = "kafka: {topics: [b], group: h, dead_letter: d}";
        let of = |one: &str, other: &str| {
            conflicts_of(&[
                ("a.yaml", &document("a", &format!("{{{one}}}"))),
                ("b.yaml", &document("b", &format!("{{{other}}}"))),
            ])
        };
        assert_eq!(
            of(get, same),
            ["a.yaml and b.yaml both have the route GET /x/{id}"]
        );
        assert_eq!(
            of(read, shared),
            ["a.yaml and b.yaml both have a subscription of the topic 'b' in the group 'g'"]
        );
        assert_eq!(of(get, other_method), [""; 0]);
        assert_eq!(of(read, other_group), [""; 0]);
        assert_eq!(of(get, read), [""; 0]);
    }

    #[test]
    fn a_name_is_there_once() {
        let one = document("a", "");
        let found = conflicts_of(&[("1.yaml", &one), ("2.yaml", &one), ("3.yaml", &one)]);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], "1.yaml and 2.yaml both are the pipeline 'a'");
        // What is wrong with a document alone, the host says.
        let unnamed = document("No Name", "");
        let found = conflicts_of(&[("1.yaml", &unnamed), ("2.yaml", &unnamed), ("3.yaml", ":")]);
        assert_eq!(found, [""; 0]);
        let json = r#"{"stepwell": 1, "name": "a", "steps": []}"#;
        assert_eq!(conflicts_of(&[("1.yaml", &one), ("2.json", json)]).len(), 1);
    }
}
