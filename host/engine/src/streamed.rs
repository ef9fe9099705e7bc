use std::collections::HashSet;

use wasmparser::component_types::{
    ComponentAnyTypeId, ComponentDefinedType, ComponentDefinedTypeId, ComponentValType,
};
use wasmparser::types::TypesRef;
use wasmparser::{BinaryReaderError, CanonicalFunction, Payload};

/// Finds out, while a component is read, whether a guest writes flags to a stream or a future.
///
/// Where another guest reads them, each value is copied by way of a list of its flags' names: 200,000 of them, which are 800 KB of
/// a guest's memory, took half a gigabyte of the host's and half a second, in which nothing interrupts the thread. What a copy may
/// take at most (`Store::set_hostcall_fuel`) does not count these lists.
#[derive(Default)]
pub(crate) struct Streamed {
    flags: bool,
    /// Types without any flags in them; they are shared, and may be named in any number of ways.
    plain: HashSet<ComponentDefinedTypeId>,
}

impl Streamed {
    pub(crate) fn has_flags(&self) -> bool {
        self.flags
    }

    /// Reads on; the payload is a valid one, and the types are those of the component that it is in.
    pub(crate) fn read(
        &mut self,
        payload: &Payload<'_>,
        types: Option<TypesRef<'_>>,
    ) -> Result<(), BinaryReaderError> {
        let (Payload::ComponentCanonicalSection(section), Some(types)) = (payload, types) else {
            return Ok(());
        };
        for function in section.clone() {
            if let CanonicalFunction::StreamWrite { ty, .. }
            | CanonicalFunction::FutureWrite { ty, .. } = function?
                && let ComponentAnyTypeId::Defined(id) = types.component_any_type_at(ty)
            {
                self.flags = self.flags || self.look_into(id, types);
            }
        }
        Ok(())
    }

    /// Whether there are flags anywhere in a type. Not by recursion: how deep types are is the upload's to say.
    fn look_into(&mut self, id: ComponentDefinedTypeId, types: TypesRef<'_>) -> bool {
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            if !self.plain.insert(id) {
                continue;
            }
            let Some(ty) = types.get(id) else {
                continue;
            };
            let mut inner = |ty: &ComponentValType| {
                if let ComponentValType::Type(id) = ty {
                    open.push(*id);
                }
            };
            match ty {
                ComponentDefinedType::Flags(_) => return true,
                ComponentDefinedType::Record(record) => record.fields.values().for_each(inner),
                ComponentDefinedType::Variant(variant) => {
                    let cases = variant.cases.values();
                    cases.filter_map(|case| case.ty.as_ref()).for_each(inner);
                }
                ComponentDefinedType::Tuple(tuple) => tuple.types.iter().for_each(inner),
                ComponentDefinedType::List { element, .. }
                | ComponentDefinedType::FixedLengthList { element, .. } => inner(element),
                ComponentDefinedType::Map { key, value, .. } => {
                    inner(key);
                    inner(value);
                }
                ComponentDefinedType::Option { ty, .. } => inner(ty),
                ComponentDefinedType::Result { ok, err, .. } => {
                    ok.iter().chain(err).for_each(inner);
                }
                ComponentDefinedType::Stream { ty, .. }
                | ComponentDefinedType::Future { ty, .. } => ty.iter().for_each(inner),
                ComponentDefinedType::Primitive(_)
                | ComponentDefinedType::Enum(_)
                | ComponentDefinedType::Own(_)
                | ComponentDefinedType::Borrow(_) => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use wasmparser::{Parser, Validator, WasmFeatures};

    use super::*;

    fn streams_flags(text: &str) -> bool {
        let bytes = wat::parse_str(format!("(component {text})")).unwrap();
        let mut validator =
            Validator::new_with_features(WasmFeatures::default() | WasmFeatures::CM_ASYNC);
        let mut streamed = Streamed::default();
        for payload in Parser::new(0).parse_all(&bytes) {
            let payload = payload.unwrap();
            validator.payload(&payload).unwrap();
            streamed.read(&payload, validator.types(0)).unwrap();
        }
        streamed.has_flags()
    }

    /// A component with these types, the last of which is `$t`, that writes this.
    fn writing(types: &str, what: &str) -> String {
        format!(
            r#"(core module $m (memory (export "memory") 1)
                 (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable))
               (core instance $i (instantiate $m))
               {types} (type $w {what})
               (core func (canon {} $w async (memory (core memory $i "memory"))))"#,
            match what.starts_with("(stream") {
                true => "stream.write",
                false => "future.write",
            }
        )
    }

    #[test]
    fn flags_are_found_wherever_they_are() {
        let flags = r#"(type $f (flags "a" "b"))"#;
        for (types, found) in [
            (r#"(type $t (flags "a" "b"))"#.to_owned(), true),
            (
                format!(r#"{flags} (type $t (record (field "x" u8) (field "y" $f)))"#),
                true,
            ),
            (
                format!(r#"{flags} (type $t (variant (case "x") (case "y" $f)))"#),
                true,
            ),
            (format!("{flags} (type $t (tuple u8 $f))"), true),
            (format!("{flags} (type $l (list $f)) (type $t (list $l))"), true),
            (format!("{flags} (type $t (option $f))"), true),
            (format!("{flags} (type $t (result u8 (error $f)))"), true),
            (format!("{flags} (type $t (result $f))"), true),
            (format!("{flags} (type $t (stream $f))"), true),
            (format!("{flags} (type $t (future $f))"), true),
            // There are some, but not in what is written.
            (format!(r#"{flags} (type $t (enum "a" "b"))"#), false),
            (
                r#"(type $e (enum "a")) (type $t (record (field "x" $e) (field "y" (list string))))"#.to_owned(),
                false,
            ),
        ] {
            for what in ["(stream $t)", "(future $t)"] {
                assert_eq!(streams_flags(&writing(&types, what)), found, "{what} {types}");
            }
        }
    }

    #[test]
    fn flags_are_found_in_components_within_components() {
        let inner = writing(r#"(type $t (flags "a"))"#, "(stream $t)");
        assert!(streams_flags(&format!("(component (component {inner}))")));
        assert!(streams_flags(&format!(
            r#"(type $f (flags "a")) (component {})"#,
            writing("(alias outer 1 $f (type $t))", "(stream $t)")
        )));
    }

    #[test]
    fn flags_that_are_only_read_are_none_of_its_business() {
        let text = writing(r#"(type $t (flags "a"))"#, "(stream $t)");
        assert!(streams_flags(&text));
        assert!(!streams_flags(&text.replace("stream.write", "stream.read")));
    }
}
