;; A step that no compiler would make. Tests write what is in its core module, which defines `memory`, `realloc` and `process`.
(component
  (import "stepwell:pipeline/types@0.1.0" (instance $types
    (type $pair (tuple string string))
    (type $event' (record
      (field "id" string) (field "source" string) (field "type" string)
      (field "subject" (option string)) (field "time" (option string)) (field "datacontenttype" (option string))
      (field "extensions" (list $pair)) (field "data" (list u8))))
    (export "event" (type $event (eq $event')))
    (type $error' (variant (case "invalid" string) (case "unavailable" string) (case "failed" string)))
    (export "error" (type $error (eq $error')))
  ))
  (alias export $types "event" (type $event))
  (alias export $types "error" (type $error))
  (core module $m
    MODULE
  )
  (core instance $i (instantiate $m))
  BESIDE
  (type $events (list $event))
  (type $result (result $events (error $error)))
  (func $process (param "input" $event) (result $result)
    (canon lift (core func $i "process") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
  (instance $handler (export "process" (func $process)))
  (export "stepwell:pipeline/handler@0.1.0" (instance $handler))
)
