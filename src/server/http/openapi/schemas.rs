//! JSON schemas of requests and answers, in the form that generators of clients read.
//!
//! A JSON schema can say one thing in several ways, and generators know only some of them. So the schemas of the types
//! are rewritten: [`simplify`] lists the rules.

use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

/// Path of the named schemas in the document.
const DEFINITIONS: &str = "/components/schemas";

/// Generates the document's schemas. Named types become components, which the document refers to.
pub(super) struct Schemas {
    answers: SchemaGenerator,
    requests: SchemaGenerator,
    /// Schemas that are written by hand.
    written: Map<String, Value>,
}

impl Schemas {
    pub(super) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = DEFINITIONS.into());
        let requests = settings.clone().for_deserialize().into_generator();
        Self { answers: settings.for_serialize().into_generator(), requests, written: Map::new() }
    }

    /// Schema of an answer.
    pub(super) fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().to_value()
    }

    /// Schema of a request's body.
    pub(super) fn request<T: JsonSchema>(&mut self) -> Value {
        self.requests.subschema_for::<T>().to_value()
    }

    /// Names a schema that is written by hand, and returns the reference to it.
    pub(super) fn name(&mut self, name: &str, schema: Value) -> Value {
        self.written.insert(name.into(), schema);
        json!({ "$ref": format!("#{DEFINITIONS}/{name}") })
    }

    /// Query parameters that a struct is read from.
    pub(super) fn query<T: JsonSchema>(&mut self) -> Vec<Value> {
        let schema = T::json_schema(&mut self.requests).to_value();
        let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        let parameter = |(name, mut schema): (String, Value)| {
            remove_null(&mut schema);
            let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            json!({ "name": name, "in": "query", "description": description, "schema": schema })
        };
        properties.into_iter().map(parameter).collect()
    }

    /// The named schemas.
    pub(super) fn into_components(mut self) -> Map<String, Value> {
        // A type that is both read and written has the same schema in both directions.
        let mut components = self.requests.take_definitions(true);
        components.extend(self.answers.take_definitions(true));
        components.extend(self.written);
        components
    }
}

/// Rewrites schemas, wherever they are in a value, so that generators read them:
///
/// - A schema `true` becomes `{}`.
/// - A choice of constants becomes an enumeration, whose description lists its values.
/// - An optional member of an object is never null: it is absent then.
/// - A paragraph of a description is one line.
pub(super) fn simplify(value: &mut Value) {
    match value {
        Value::Object(object) => {
            allow_anything(object);
            merge_constants(object);
            optional_members_are_not_null(object);
            if let Some(Value::String(text)) = object.get_mut("description") {
                let paragraphs: Vec<_> = text.split("\n\n").map(join_lines).collect();
                *text = paragraphs.join("\n\n");
            }
            object.values_mut().for_each(simplify);
        }
        Value::Array(values) => values.iter_mut().for_each(simplify),
        _ => {}
    }
}

/// One line of a paragraph's lines. The items of a list keep theirs.
fn join_lines(paragraph: &str) -> String {
    paragraph.replace("\n- ", "\u{0}").replace('\n', " ").replace('\u{0}', "\n- ")
}

/// Replaces the schema `true`, which is equal to `{}`.
fn allow_anything(object: &mut Map<String, Value>) {
    let replace = |schema: &mut Value| {
        if *schema == Value::Bool(true) {
            *schema = json!({});
        }
    };
    for (key, member) in object {
        match (key.as_str(), member) {
            ("items", schema) => replace(schema),
            ("properties" | "schemas", Value::Object(schemas)) => schemas.values_mut().for_each(replace),
            ("anyOf" | "oneOf" | "allOf" | "prefixItems", Value::Array(schemas)) => {
                schemas.iter_mut().for_each(replace);
            }
            _ => {}
        }
    }
}

/// Turns `oneOf` of constants, the schema of an enumeration whose values have descriptions, into `enum`.
fn merge_constants(object: &mut Map<String, Value>) {
    if let Some(constant) = object.remove("const") {
        object.insert("enum".into(), json!([constant]));
    }
    let Some(Value::Array(choices)) = object.get("oneOf") else { return };
    let Some(values) = choices.iter().map(|choice| choice.get("const").cloned()).collect::<Option<Vec<_>>>() else {
        return;
    };
    let describe = |choice: &Value| {
        let description = choice.get("description")?.as_str()?;
        Some(format!("- `{}`: {}", choice["const"].as_str()?, description.replace('\n', " ")))
    };
    let kind = choices.first().and_then(|choice| choice.get("type")).cloned();
    let list: Vec<_> = choices.iter().filter_map(describe).collect();
    let own = object.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    object.remove("oneOf");
    object.insert("enum".into(), Value::Array(values));
    if let Some(kind) = kind {
        object.insert("type".into(), kind);
    }
    let parts: Vec<_> = [own, list.join("\n")].into_iter().filter(|part| !part.is_empty()).collect();
    if !parts.is_empty() {
        object.insert("description".into(), parts.join("\n\n").into());
    }
}

/// Removes null from the members of an object that may be absent.
fn optional_members_are_not_null(object: &mut Map<String, Value>) {
    let required = object.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(Value::Object(properties)) = object.get_mut("properties") else { return };
    for (_, schema) in properties.iter_mut().filter(|(name, _)| !required.contains(&Value::String((*name).clone()))) {
        remove_null(schema);
    }
}

/// Removes null from the values that a schema allows.
fn remove_null(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [single] = &types[..] {
            let single = single.clone();
            object.insert("type".into(), single);
        }
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(choices)) = object.remove("anyOf") {
        let choices: Vec<_> = choices.into_iter().filter(|choice| choice["type"] != "null").collect();
        match &choices[..] {
            [Value::Object(single)] => single.iter().for_each(|(k, v)| {
                object.entry(k.clone()).or_insert_with(|| v.clone());
            }),
            _ => drop(object.insert("anyOf".into(), Value::Array(choices))),
        }
    }
    if object.get("default") == Some(&Value::Null) {
        object.remove("default");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_simple(mut schema: Value, simple: Value) {
        simplify(&mut schema);
        assert_eq!(schema, simple);
    }

    #[test]
    fn the_schema_of_an_optional_value_does_not_allow_null() {
        for (mut schema, without) in [
            (
                json!({"type": ["integer", "null"], "minimum": 1, "default": null}),
                json!({"type": "integer", "minimum": 1}),
            ),
            (
                json!({"description": "d", "anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]}),
                json!({"description": "d", "type": "string", "enum": ["a"]}),
            ),
            (json!({"type": ["string", "null"], "enum": ["a", null]}), json!({"type": "string", "enum": ["a"]})),
            (json!({"anyOf": [{"$ref": "#/a"}, {"type": "null"}]}), json!({"$ref": "#/a"})),
        ] {
            remove_null(&mut schema);
            assert_eq!(schema, without);
        }
        let properties = json!({"a": {"type": ["string", "null"]}, "b": {"type": ["string", "null"]}});
        assert_simple(
            json!({"properties": properties, "required": ["b"]}),
            json!({"properties": {"a": {"type": "string"}, "b": {"type": ["string", "null"]}}, "required": ["b"]}),
        );
    }

    #[test]
    fn constants_become_an_enumeration_and_a_list() {
        let choice = |value: &str| json!({"const": value, "description": "Two\nlines.", "type": "string"});
        assert_simple(
            json!({"description": "Which\nof them.", "oneOf": [choice("a"), choice("b")]}),
            json!({
                "description": "Which of them.\n\n- `a`: Two lines.\n- `b`: Two lines.",
                "type": "string",
                "enum": ["a", "b"],
            }),
        );
        assert_simple(json!({"const": "a"}), json!({"enum": ["a"]}));
        let types = json!({"oneOf": [{"type": "string"}, {"type": "number"}]});
        assert_simple(types.clone(), types);
    }

    #[test]
    fn a_schema_is_an_object() {
        assert_simple(
            json!({"items": true, "properties": {"x": true}, "anyOf": [true], "additionalProperties": false}),
            json!({"items": {}, "properties": {"x": {}}, "anyOf": [{}], "additionalProperties": false}),
        );
    }
}
