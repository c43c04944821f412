"""Chat templates for files that carry none. Each is a text in the language of `tokenizer.chat_template`."""

from __future__ import annotations

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

# The system message stands inside the first user message.
LLAMA2 = """\
{%- set ns = namespace(system="") -%}
{%- for message in messages -%}
{%- if message.role == "system" -%}
{%- set ns.system = "<<SYS>>\\n" ~ message.content ~ "\\n<</SYS>>\\n\\n" -%}
{%- elif message.role == "assistant" -%}
{{ " " ~ message.content | trim ~ " " ~ eos_token }}
{%- else -%}
{{ bos_token ~ "[INST] " ~ ns.system ~ message.content | trim ~ " [/INST]" }}
{%- set ns.system = "" -%}
{%- endif -%}
{%- endfor -%}
"""

LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ "<|start_header_id|>" ~ message.role ~ "<|end_header_id|>\\n\\n" ~ message.content | trim ~ "<|eot_id|>" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif -%}
"""

BUILTIN = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3}
