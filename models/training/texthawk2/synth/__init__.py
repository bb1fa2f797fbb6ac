"""Pictures that the project draws itself, to train and to judge texthawk2-nano: text, shapes, pages, boxes."""
