use wasmparser::{
    BinaryReaderError, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ComponentTypeRef, Encoding, Instance, Payload,
};

/// Counts, while a component is read, how many instances of components with code one instance of it consists of: itself, and those
/// of the components in it. Where they are async, each of them may wait on a stack of its own.
#[derive(Default)]
pub(crate) struct Instances {
    /// The components and modules that are being read, the innermost last.
    open: Vec<Open>,
    whole: u64,
}

enum Open {
    Module,
    Component(Component),
}

#[derive(Default)]
struct Component {
    has_code: bool,
    /// Of the components that it instantiates.
    inner: u64,
    /// What each component that it can name consists of.
    named: Vec<u64>,
}

/// What a component consists of that is only known when it is given.
const UNKNOWN: u64 = 1 << 32;

impl Component {
    fn instances(&self) -> u64 {
        self.inner.saturating_add(u64::from(self.has_code))
    }
}

impl Instances {
    /// Of the component that was read to its end.
    pub(crate) fn of_the_whole(&self) -> u64 {
        self.whole
    }

    /// Reads on; the payload is a valid one.
    pub(crate) fn read(&mut self, payload: &Payload<'_>) -> Result<(), BinaryReaderError> {
        match payload {
            Payload::Version { encoding, .. } => self.open.push(match encoding {
                Encoding::Module => Open::Module,
                Encoding::Component => Open::Component(Component::default()),
            }),
            Payload::End(_) => {
                if let Some(Open::Component(ended)) = self.open.pop() {
                    match self.open.last_mut() {
                        Some(Open::Component(outer)) => outer.named.push(ended.instances()),
                        _ => self.whole = ended.instances(),
                    }
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section.clone() {
                    let named = match alias? {
                        ComponentAlias::Outer {
                            kind: ComponentOuterAliasKind::Component,
                            count,
                            index,
                        } => self.outer(count, index),
                        ComponentAlias::InstanceExport {
                            kind: ComponentExternalKind::Component,
                            ..
                        } => UNKNOWN,
                        _ => continue,
                    };
                    self.name(named);
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section.clone() {
                    if matches!(import?.ty, ComponentTypeRef::Component(_)) {
                        self.name(UNKNOWN);
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section.clone() {
                    let export = export?;
                    if export.kind == ComponentExternalKind::Component {
                        let named = self.outer(0, export.index);
                        self.name(named);
                    }
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section.clone() {
                    if let ComponentInstance::Instantiate {
                        component_index, ..
                    } = instance?
                    {
                        let instances = self.outer(0, component_index);
                        if let Some(Open::Component(component)) = self.open.last_mut() {
                            component.inner = component.inner.saturating_add(instances);
                        }
                    }
                }
            }
            Payload::InstanceSection(section) => {
                for instance in section.clone() {
                    let is_code = matches!(instance?, Instance::Instantiate { .. });
                    if let Some(Open::Component(component)) = self.open.last_mut() {
                        component.has_code |= is_code;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What a component that the `count`th component around the innermost one names consists of.
    fn outer(&self, count: u32, index: u32) -> u64 {
        let around = self.open.iter().rev().nth(count as usize);
        match around {
            Some(Open::Component(component)) => {
                let named = component.named.get(index as usize);
                named.copied().unwrap_or(UNKNOWN)
            }
            _ => UNKNOWN,
        }
    }

    fn name(&mut self, instances: u64) {
        if let Some(Open::Component(component)) = self.open.last_mut() {
            component.named.push(instances);
        }
    }
}

#[cfg(test)]
mod tests {
    use wasmparser::Parser;

    use super::*;

    fn instances(text: &str) -> u64 {
        let bytes = wat::parse_str(text).unwrap();
        let mut instances = Instances::default();
        for payload in Parser::new(0).parse_all(&bytes) {
            instances.read(&payload.unwrap()).unwrap();
        }
        instances.of_the_whole()
    }

    #[test]
    fn those_with_code_count_as_often_as_they_are_there() {
        const CODE: &str =
            "(core module $m) (core instance (instantiate $m)) (core instance (instantiate $m))";
        for (text, expected) in [
            ("(component)".to_owned(), 0),
            (format!("(component {CODE})"), 1),
            // What only renames things has no code.
            (format!("(component {CODE} (component $shim) (instance (instantiate $shim)) (instance (instantiate $shim)))"), 1),
            (format!("(component {CODE} (component $never {CODE}))"), 1),
            (
                format!(
                    "(component {CODE} (component $none) (component $a {CODE}) (instance (instantiate $none))
                        (instance (instantiate $a)) (instance (instantiate $a)))"
                ),
                3,
            ),
            (
                format!(
                    "(component (component $a {CODE})
                        (component $b (alias outer 1 $a (component $c)) {CODE}
                            (instance (instantiate $c)) (instance (instantiate $c)))
                        (instance (instantiate $b)) (instance (instantiate $b)))"
                ),
                6,
            ),
            (
                format!("(component (component $a {CODE}) (export $b \"b\" (component $a)) (instance (instantiate $b)))"),
                1,
            ),
        ] {
            assert_eq!(instances(&text), expected, "{text}");
        }
        let given = format!(
            "(component (component $a {CODE}) (component $b (import \"c\" (component $c)) (instance (instantiate $c)))
                (instance (instantiate $b (with \"c\" (component $a)))))"
        );
        assert_eq!(instances(&given), UNKNOWN);
    }
}
