;; expect: refused component
(component)
