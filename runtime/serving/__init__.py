"""An app, served: pictures, answers and events over HTTP, with a page to teach and ask on."""
