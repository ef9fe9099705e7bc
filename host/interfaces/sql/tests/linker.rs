//! A component that imports the interface finds it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use stepwell_core::Call;
use stepwell_sql::{Databases, DatabasesView};
use wasmtime::Engine;
use wasmtime::component::{Component, Linker, ResourceTable};

struct State {
    databases: Databases,
    call: Call,
    table: ResourceTable,
}

fn get(state: &mut State) -> DatabasesView<'_> {
    DatabasesView {
        databases: &state.databases,
        call: &state.call,
        table: &mut state.table,
    }
}

#[test]
fn a_component_that_imports_it_links() {
    let engine = Engine::default();
    let mut linker = Linker::<State>::new(&engine);
    let component = |interface: &str| {
        let text = format!(
            r#"(component (import "stepwell:sql/{interface}@0.1.0" (instance
                (export "connection" (type (sub resource)))
                (export "transaction" (type (sub resource))))))"#
        );
        Component::new(&engine, wat::parse_str(text).unwrap()).unwrap()
    };
    assert!(linker.instantiate_pre(&component("database")).is_err());
    stepwell_sql::add_to_linker(&mut linker, get).unwrap();
    linker.instantiate_pre(&component("database")).unwrap();
    assert!(linker.instantiate_pre(&component("databases")).is_err());
    assert!(stepwell_sql::add_to_linker(&mut linker, get).is_err());
}
